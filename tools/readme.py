"""Copies what README.md shows from the executed notebooks: the outputs of cells tagged ``readme``.

A figure becomes notebooks/readme_NN.png, where NN is the number of its notebook; a text replaces what stands in
README.md between ``<!-- notebook NN -->`` and ``<!-- end -->``.

python tools/readme.py
"""

from __future__ import annotations

import base64
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"


def outputs(kind: str) -> dict[str, str]:
    """{number of the notebook: output of this MIME type of its cell tagged ``readme``}. ValueError if there are two."""
    found: dict[str, str] = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        tagged = [c for c in nbformat.read(path, as_version=4).cells if "readme" in c.metadata.get("tags", [])]
        data = [output.data[kind] for cell in tagged for output in cell.outputs if kind in output.get("data", {})]
        if len(data) > 1:
            raise ValueError(f"{path.name}: {len(data)} outputs of type {kind} in cells tagged readme, expected one")
        found |= {path.name[:2]: output for output in data}
    return found


def figures() -> dict[Path, bytes]:
    """The figures, and the files they belong into."""
    pictures = outputs("image/png")
    return {ROOT / "notebooks" / f"readme_{number}.png": base64.b64decode(data) for number, data in pictures.items()}


def filled(text: str) -> str:
    """The README with the notebooks' texts put in. Raises ValueError where it has no place for one, or two."""
    for number, words in outputs("text/markdown").items():
        place = re.compile(rf"(<!-- notebook {number} -->\n).*?(<!-- end -->)", re.DOTALL)
        if len(place.findall(text)) != 1:
            raise ValueError(f"README.md: expected one place for the text of notebook {number}")
        text = place.sub(lambda found, words=words: f"{found[1]}\n{words}\n\n{found[2]}", text)
    return text


if __name__ == "__main__":
    for path, data in figures().items():
        path.write_bytes(data)
    README.write_text(filled(README.read_text("utf-8")), "utf-8")
