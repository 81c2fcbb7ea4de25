"""Warnings that point at the line of whoever uses the package, however deep inside they are raised."""

import sys
import warnings


def warn_caller(message: str) -> None:
    """Warn (UserWarning), naming the first line on the way up that isn't the package's own.

    From Python 3.12 on, `warnings.warn` can do this by itself (skip_file_prefixes).
    """
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in (__package__, "contextlib"):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
