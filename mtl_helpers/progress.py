"""A progress bar that appears late and leaves nothing behind."""

import sys
from collections.abc import Iterable

from tqdm import tqdm


class _NotebookLine:
    """Shows what tqdm writes as one line of output that is replaced in place and empty in the end."""

    def __init__(self) -> None:
        self.handle = None

    def write(self, text: str) -> None:
        from IPython.display import DisplayHandle, Pretty

        shown = text.replace("\x1b[A", "").strip()  # a bar inside another one moves the cursor about
        if self.handle is not None:
            self.handle.update(Pretty(shown))
        elif shown:
            self.handle = DisplayHandle()  # before anything is shown, so that an interruption can't lose it
            self.handle.display(Pretty(shown))

    def flush(self) -> None:
        pass


def progress(items: Iterable, label: str, total: int | None = None) -> tqdm:
    """A text progress bar that appears after two seconds and leaves nothing behind, in a notebook neither."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    in_notebook = shell is not None and hasattr(shell, "kernel")
    quiet = None if not in_notebook else False  # None: only on a terminal
    return tqdm(
        items,
        label,
        total,
        leave=False,
        delay=2,
        bar_format="{desc} {percentage:3.0f}%|{bar:10}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        ncols=120 if in_notebook else None,
        dynamic_ncols=not in_notebook,
        disable=quiet,
        file=_NotebookLine() if in_notebook else None,
    )
