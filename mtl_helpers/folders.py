"""Files and folders of models: written whole or not at all, checked when they are read."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SETTINGS = "encoder.json"  # written last: the hashes of the weights that belong together
# What another model may have left in a folder, and would be read with the new one.
STALE = ("special_tokens_map.json", "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt")
STALE += ("sentencepiece.bpe.model", "spiece.model", "adapter_config.json")


@contextmanager
def replacing(directory: str | Path) -> Iterator[Path]:
    """Yield an empty folder and, if all goes well, move its files into `directory`, descriptions last.

    A save that is interrupted leaves the old model, or hashes that don't fit, which loading notices.

    Raises:
        OSError: the disk is full or can't be written; names the directory.
    """
    directory = Path(directory).expanduser()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as folder:
            yield Path(folder)
            umask = os.umask(0)
            os.umask(umask)
            for path in Path(folder).rglob("*.safetensors"):
                path.chmod(0o666 & ~umask)  # safetensors writes files that nobody else may read
            names = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
            for name in sorted(names, key=lambda name: name.name in (SETTINGS, "tasks.json", "serving.json")):
                (directory / name).parent.mkdir(exist_ok=True)
                os.replace(folder / name, directory / name)
            for name in STALE if Path("config.json") in names else ():
                if Path(name) not in names:
                    (directory / name).unlink(missing_ok=True)
    except Exception as error:
        # safetensors and tokenizers report a failed write as errors of their own; Rust appends "(os error 28)" to them
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        remedy = "free some space or save elsewhere; what was saved there before is as it was"
        raise OSError(f"{directory}: nothing saved ({error.__cause__ or error}); {remedy}") from (
            error.__cause__ or error
        )


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each safetensors file in a folder and the folders in it."""
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in sorted(folder.rglob("*.safetensors"))}


def read_json(path: Path, kind: type = dict) -> dict | list:
    """Read JSON. FileNotFoundError if the file is missing, ValueError naming it if it is damaged or of another kind."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a complete model directory; save or fetch it again")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged ({error}), expected JSON; save or fetch the model again") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: holds a {type(value).__name__}, expected a {kind.__name__}; is it another file?")
    return value


def write_json(path: Path, value: dict | list) -> None:
    """Write JSON that a person can read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def check_sha256(path: Path, expected: str) -> None:
    """Raise FileNotFoundError if a file is missing and ValueError if its SHA-256 is not the expected one."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected weights in the safetensors format")
    actual = sha256_of(path)
    if actual != expected:
        raise ValueError(f"{path}: its SHA-256 is {actual}, expected {expected}; fetch or save the file again")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and load reports from transformers."""
    from transformers.utils import logging  # here, since a server needs this module and not that library

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
