"""The one exception that is shown to a person as a single line."""


class InputError(ValueError):
    """Bad input from the user: the message says what is wrong, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with 2.
    """
