"""Reading a CSV with all its problems listed, each with line, column and remedy."""

import csv
import io
from os.path import expanduser
from pathlib import Path

from .tables import OTHER_SEPARATORS, CorpusError, refuse


def read_rows(path: str | Path) -> tuple[list[str], list[tuple[int, list[str]]], list[tuple[int, str]]]:
    """Header, (line, cells) of each row, and (line, problem) of each ragged row; "~" in the path is the home folder."""
    path = Path(expanduser(path))
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise CorpusError(f"{path}: found {what}, expected a CSV file; check the path (now in {Path.cwd()})")
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
        refuse(path, [(line, f"line {line}: found byte 0x{byte:02x}, expected UTF-8; save the file as UTF-8")])
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        refuse(path, [(line, f"line {line}: found a NUL byte, expected text; save the file as CSV, in UTF-8")])
    csv.field_size_limit(2**31 - 1)  # the default refuses a cell of more than 131,072 characters
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header, rows, problems, line = [], [], [], 1
    try:
        for cells in reader:
            if cells and not header:
                header = cells
            elif cells and len(cells) != len(header):
                remedy = "put a text with commas in quotes" if len(cells) > len(header) else "give each cell its comma"
                expected = f"expected {len(header)} as in the header; {remedy}"
                problems.append((line, f"line {line}: found {len(cells)} cells, {expected}"))
            elif cells:
                rows.append((line, cells))
            line = reader.line_num + 1
    except csv.Error as error:
        other = not header and OTHER_SEPARATORS & set(text.lstrip().partition("\n")[0])
        expected = "columns separated with commas" if other else "every quote to be closed, and doubled inside a text"
        problems.append((line, f"line {line}: found broken quotes ({error}), expected {expected}"))
    if not header:
        refuse(path, problems or [(1, "line 1: found an empty file, expected a header and at least one row")])
    if not rows and not problems:
        refuse(path, [(2, "line 2: found only a header, expected at least one row under it")])
    return header, rows, problems
