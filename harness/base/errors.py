"""The exceptions for what the user can put right."""


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do.

    Caught in `launch/` only, where it becomes a line on stderr and a non-zero exit status.
    """


class Hindered(UserError):
    """Something around the run stopped it, such as a full disk; without that it would go on."""
