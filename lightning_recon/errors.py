"""The one exception that is shown to a person as a single line."""


class InputError(Exception):
    """Bad input from the user: the message says what is wrong, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with 2.  No
    ``ValueError``: jsonargparse would take those for a mismatch of types and bury the message.
    """
