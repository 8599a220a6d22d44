"""Odd input for every reader: an answer or one message, never a traceback, a hang or a wrong
result.

    make fuzz                                        # all targets, ten minutes
    python -m tests.fuzz --seconds 60 recipes lists  # some of them

A target is a reader of something that users write, name or damage. `test_fuzz.py` tries a few
inputs of each, always the same ones; `python -m tests.fuzz` draws new ones each time, and prints
the inputs that went wrong.
"""
