"""What every command says and writes: messages beside the results, one message for an error, exit codes."""

import errno
import io
import os
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# Under torch.distributed.run, the first of the processes speaks and writes for all.
FIRST = os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK") == "0"

REMEDIES = {errno.ENOSPC: "free some space there, or write elsewhere", errno.ENOENT: "check the path"}


def say(text: str) -> None:
    """A message for the user, on standard error; results go to standard output."""
    if FIRST:
        print(text, file=sys.stderr, flush=True)


def guarded(command: Callable[[], None], *more: type[Exception]) -> int:
    """Run it; returns the exit code. Errors and warnings become one message each on standard error.

    Args:
        more: kinds of errors, besides those in data and models, that deserve no traceback.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {' '.join(str(message).split())}")
        try:
            command()
            sys.stdout.flush()
        except KeyboardInterrupt as error:
            say(str(error) or "stopped")
            return 130
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.ENOSPC):  # no second error when Python ends and flushes
                with suppress(io.UnsupportedOperation):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if error.errno == errno.EPIPE:  # whoever reads, `head` for instance, has seen enough
                return 0
            say(f"error: {_explained(error)}")
            return 1
        except (ValueError, FloatingPointError, *more) as error:
            say(f"error: {error}")
            return 1
    return 0


def expanded(path: str) -> Path:
    """A path in which ~ stands for the home folder."""
    return Path(os.path.expanduser(path))


def write(path: Path, text: str) -> None:
    """Write a text file; an OSError names it, also that of a full disk."""
    try:
        path.write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        error.filename = str(path)
        raise


def _explained(error: OSError) -> str:
    """Where, what the system refused, and what to do; errors with words of our own stay as they are."""
    if error.errno is None or error.strerror != os.strerror(error.errno):
        return str(error)
    remedy = REMEDIES.get(error.errno, "give another path, or see what this one is and who may use it")
    return f"{error.filename or 'output'}: {error.strerror}; {remedy}"
