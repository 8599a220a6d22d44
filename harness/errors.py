"""The one exception for users' mistakes."""


class UserError(Exception):
    """Something the user can put right: the message says what is wrong, where, and what to do.

    Caught in `launch/` only, where it becomes a line on stderr and a non-zero exit status.
    """
