"""The one exception that is shown to a person as a single line."""


class InputError(Exception):
    """Bad input from the user: the message says what is wrong, where, and what to do.

    The command line prints the message alone, without a traceback, and exits with 2.  No
    ``ValueError``: jsonargparse would take those for a mismatch of types and bury the message.
    """


def input_error_in(error: BaseException) -> InputError | None:
    """Return the InputError that an error is, or was made from; jsonargparse wraps them."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return None
