"""Files and folders of models: written whole or not at all, checked when they are read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = "encoder.json"


@contextmanager
def replacing(directory: str | Path) -> Iterator[Path]:
    """Yield an empty folder and, if all goes well, move its files into `directory`, descriptions last.

    A save that is interrupted leaves the old model, or hashes that don't fit, which loading notices.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as folder:
        yield Path(folder)
        umask = os.umask(0)
        os.umask(umask)
        for path in Path(folder).rglob("*.safetensors"):
            path.chmod(0o666 & ~umask)  # safetensors writes files that nobody else may read
        written = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
        for name in sorted(written, key=lambda name: name.name in (SETTINGS, "tasks.json", "serving.json")):
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(folder / name, directory / name)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each safetensors file directly in a folder."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def read_json(path: Path) -> dict:
    """Read a JSON object. FileNotFoundError if the file is missing, ValueError naming it if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a complete model directory; save or fetch it again")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}), expected JSON; save or fetch the model again") from error


def write_json(path: Path, value: dict | list) -> None:
    """Write JSON that a person can read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_sha256(path: Path, expected: str) -> None:
    """Raise FileNotFoundError if a file is missing and ValueError if its SHA-256 is not the expected one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected weights in the safetensors format")
    found = sha256_of(path)
    if found != expected:
        raise ValueError(f"{path}: its SHA-256 is {found}, expected {expected}; fetch or save the file again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports from transformers."""
    from transformers.utils import logging  # here, because serving reads folders without transformers

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
