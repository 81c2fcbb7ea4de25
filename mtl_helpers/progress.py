"""A progress bar that appears late and leaves nothing behind."""

import os
import sys
from collections.abc import Iterable

from tqdm import tqdm


def progress(items: Iterable, label: str, total: int | None = None) -> tqdm:
    """A bar of text that appears after two seconds, on a terminal or in a notebook, and is erased in the end."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None  # a kernel's shell has a kernel
    in_notebook = hasattr(shell, "kernel") and "TQDM_DISABLE" not in os.environ
    where = {"file": sys.stdout, "disable": False, "ncols": 100} if in_notebook else {"disable": None}
    return tqdm(items, label, total, leave=False, delay=2, **where)  # None: only where standard error is a terminal
