"""The exceptions for errors that the user can fix."""


class UserError(Exception):
    """An error that the user can fix: the message has what is wrong, where, and what to do.

    Caught in `launch/` only, where it becomes a message on stderr and a non-zero exit status.
    """


class Hindered(UserError):
    """An outside cause stopped the run, such as a full disk; without it the run can resume."""
