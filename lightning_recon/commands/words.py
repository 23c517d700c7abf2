"""Text is UTF-8, read and printed, whatever the locale says."""

import codecs
import io
import locale
import sys
from contextlib import suppress

_LOCALES = ("C.UTF-8", "C.utf8", "en_US.UTF-8", "UTF-8")


def use_utf8() -> None:
    """Have files opened as UTF-8, and have printing never fail.

    Of packages that open files without an encoding, Python asks the locale of the process; a
    terminal of another encoding is left alone, and shows what it lacks as an escape.
    """
    if not _is_utf8(locale.getpreferredencoding(False)):
        for name in _LOCALES:
            with suppress(locale.Error):
                locale.setlocale(locale.LC_CTYPE, name)
                break
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_plain = codecs.lookup(stream.encoding).name in ("ascii", "utf-8")
            if is_plain:  # names that are no UTF-8 are printed as the bytes that they are
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
            else:
                stream.reconfigure(errors="backslashreplace")


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"
