"""Copies the figure that README.md shows from the executed notebook it belongs to: the cell tagged ``readme``.

python tools/readme.py
"""

from __future__ import annotations

import base64
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
FIGURE = ROOT / "notebooks" / "readme_figure.png"


def figure() -> bytes:
    """The PNG of the one cell tagged ``readme``. Raises ValueError if there is none or more than one."""
    found = [
        output.data["image/png"]
        for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
        for cell in nbformat.read(path, as_version=4).cells
        if "readme" in cell.metadata.get("tags", [])
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    if len(found) != 1:
        raise ValueError(f"found {len(found)} figures in cells tagged readme, expected one")
    return base64.b64decode(found[0])


if __name__ == "__main__":
    FIGURE.write_bytes(figure())
