"""The one exception that becomes a one-line message and exit code 2."""


class UserError(Exception):
    """Something the user can put right: an option, a directory, a checkpoint.

    The message is one sentence on what is wrong, with the value, and one on what to do.
    """
