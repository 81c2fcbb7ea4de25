"""Vectors: the same as sentence-transformers', for any text, any pooling, any family, with any padding."""

import json
import re
import shutil
import urllib.request
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from torch import Tensor
from transformers import AutoConfig, AutoModel

from mtl_helpers import SentenceEncoder, load_public
from mtl_helpers import encoder as module
from mtl_helpers.encoder import POOLINGS, Dropout, bfloat16_is_fast, pool
from mtl_helpers.minilm import SHA256, find_minilm, sha256_of

ODD = {
    "empty": "",
    "white space": " \t\n\u3000 ",
    "one word": "Behold",
    "10,000 words": "Every word counts until there are too many of them. " * 1000,
    "one long word": "x" * 5000,
    "emoji": "😀👩‍👩‍👧 great 🇳🇴!",
    "right to left": "שלום עולם، مرحبا بالعالم",
    "Chinese": "我喜欢音乐。",
    "control characters": "a\x01b\x7f\x85\r\nc\x1b[0m",
    "NUL": "before\0after",
    "zero width": "zero\u200bwidth\u200d\ufeff",
    "combining accents": "Zso\u0301fia e\u0301\u0302\u0303",
    "special tokens": "[CLS] [SEP] [MASK] [PAD] </s> <pad>",
    "unassigned": "\U0010ffff\ue000\ufffd",
}
SHORT = ["", "Behold!", "Could Ana Duarte send the minutes to Oslo?", "Pure magic, from the first note to the last."]
LONG = "word after word " * 350  # more than 1,000 words


def assert_same(found: Tensor, expected: Tensor | np.ndarray):
    torch.testing.assert_close(found, torch.as_tensor(expected), atol=1e-5, rtol=0)


# --------------------------------------------------------------------------------------- against sentence-transformers


@pytest.fixture(scope="module")
def odd_vectors(encoder) -> Tensor:
    return encoder.encode(list(ODD.values()))


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_have_the_vectors_of_sentence_transformers(name: str, odd_vectors, reference):
    assert_same(odd_vectors[list(ODD).index(name)], reference.encode([ODD[name]])[0])


def test_corpus_sentences_have_the_vectors_of_sentence_transformers(encoder, reference, corpus):
    texts = corpus["text"].sample(300, random_state=1).tolist()
    found = encoder.encode(texts)
    assert_same(found, reference.encode(texts))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.norm(dim=1), torch.ones(300))


def test_stsb_scores_what_is_published_for_these_weights(encoder, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("tests don't download")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    try:
        pairs = load_public("stsb")
    except FileNotFoundError:
        pytest.skip("no STS-B in the folder that MTL_PUBLIC names")
    first, second = encoder.encode([*pairs["sentence_1"], *pairs["sentence_2"]]).chunk(2)
    assert spearmanr((first * second).sum(dim=1), pairs["score"]).statistic == pytest.approx(0.8203, abs=5e-5)


def test_results_come_in_the_order_of_the_texts(encoder):
    texts = ["A much longer text than the others, so that batches are not in order.", "Hi.", "Good day.", "Hi."]
    found = encoder.encode(texts, max_tokens=8)
    for text, vector in zip(texts, found, strict=True):
        assert_same(vector, encoder.encode([text])[0])
    assert_same(encoder.encode(texts[::-1]), found.flip(0))


def test_no_texts(encoder):
    found = encoder.encode([])
    assert found.shape == (0, 384)
    assert found.dtype == torch.float32


def test_a_single_string_is_refused(encoder):
    with pytest.raises(TypeError, match="expected a list"):
        encoder.encode("Behold!")


def test_vectors_keep_their_length_if_wished(family_dirs):
    raw = SentenceEncoder.from_pretrained(family_dirs["bert"], normalize=False).encode(SHORT)
    assert not torch.allclose(raw.norm(dim=1), torch.ones(4), atol=0.1)
    unit = SentenceEncoder.from_pretrained(family_dirs["bert"]).encode(SHORT)
    assert_same(raw / raw.norm(dim=1, keepdim=True), unit)


def test_forward_gives_vectors_and_every_hidden_state(tiny):
    batch = {"input_ids": torch.tensor([[2, 9, 3], [2, 3, 0]]), "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 0]])}
    vectors, states = tiny(batch)
    assert vectors.shape == (2, 32)
    assert [state.shape for state in states] == [(2, 3, 32)] * 4


# --------------------------------------------------------------------------------------------------- mode and gradients


def test_encode_leaves_each_part_in_the_mode_it_was_in(tiny):
    tiny.train()
    tiny.backbone.embeddings.eval()
    before = {name: part.training for name, part in tiny.named_modules()}
    tiny.encode(SHORT)
    assert {name: part.training for name, part in tiny.named_modules()} == before
    assert len(set(before.values())) == 2


def test_a_failure_leaves_the_mode_as_well(tiny, monkeypatch):
    tiny.train()
    monkeypatch.setattr(module, "pool", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.encode(SHORT)
    assert all(part.training for part in tiny.modules())


def test_encode_runs_without_dropout(tiny):
    expected = tiny.encode(SHORT)
    assert_same(tiny.train().encode(SHORT), expected)


def test_vectors_carry_no_gradient_but_may_be_trained_upon(tiny):
    vectors = tiny.encode(SHORT)
    assert not vectors.requires_grad
    torch.nn.Linear(32, 2)(vectors).sum().backward()
    assert all(p.grad is None for p in tiny.parameters())


# --------------------------------------------------------------------------------------------------------- precision


@pytest.mark.skipif(not bfloat16_is_fast(torch.device("cpu")), reason="this processor has no fast bfloat16")
def test_bfloat16_is_close_to_float32(encoder, corpus):
    texts = corpus["text"][:50].tolist()
    exact, close = encoder.encode(texts), encoder.encode(texts, precision="bfloat16")
    assert close.dtype == torch.float32
    assert (exact * close).sum(dim=1).min() > 0.999
    assert not torch.equal(exact, close)


def test_without_fast_bfloat16_there_is_one_warning_and_float32(tiny, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.warns(UserWarning, match="this cpu has no fast bfloat16") as found:
        vectors = tiny.encode(SHORT * 10, precision="bfloat16", max_tokens=16)
    assert len(found) == 1
    assert torch.equal(vectors, tiny.encode(SHORT * 10, max_tokens=16))


def test_unknown_precision_is_refused(tiny):
    with pytest.raises(ValueError, match="precision is 'float16', expected 'float32' or 'bfloat16'"):
        tiny.encode(SHORT, precision="float16")


# ----------------------------------------------------------------------------------------------------------- pooling


def reference_pool(states: np.ndarray, mask: np.ndarray, how: str, layers: int) -> np.ndarray:
    """One text at a time, from its real tokens alone; states (layers, B, T, H)."""
    rows = []
    for b, real in enumerate(mask.astype(bool)):
        tokens = states[:, b, real]
        match how:
            case "mean":
                rows.append(tokens[-1].mean(axis=0))
            case "cls":
                rows.append(tokens[-1][0])
            case "max":
                rows.append(tokens[-1].max(axis=0))
            case "weighted":
                rows.append(np.average(tokens[-1], axis=0, weights=np.arange(1, len(tokens[-1]) + 1)))
            case "last_layers":
                rows.append(tokens[-layers:].mean(axis=(0, 1)))
    return np.stack(rows).astype(np.float32)


@st.composite
def states_and_masks(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Random hidden states (4, B, T, H), and masks with at least one token per text."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    batch, length, width = draw(st.integers(1, 4)), draw(st.integers(1, 9)), draw(st.integers(1, 5))
    mask = torch.tensor(
        draw(
            st.lists(
                st.lists(st.integers(0, 1), min_size=length, max_size=length).filter(any),
                min_size=batch,
                max_size=batch,
            )
        )
    )
    return torch.randn(4, batch, length, width, generator=generator), mask


def padded(states: Tensor, mask: Tensor, left: int, right: int) -> tuple[Tensor, Tensor]:
    """More padding on both sides, filled with large numbers."""
    noise = torch.full((4, len(mask), left + right, states.shape[-1]), 1e3)
    none = torch.zeros(len(mask), left + right, dtype=mask.dtype)
    return (
        torch.cat([noise[:, :, :left], states, -noise[:, :, left:]], dim=2),
        torch.cat([none[:, :left], mask, none[:, left:]], dim=1),
    )


@pytest.mark.parametrize("how", POOLINGS)
@given(example=states_and_masks(), left=st.integers(0, 3), right=st.integers(0, 5), layers=st.integers(1, 4))
def test_padding_never_changes_a_vector(how: str, example: tuple, left: int, right: int, layers: int):
    states, mask = example
    found = pool(tuple(states), mask, how, layers)
    assert_same(found, reference_pool(states.numpy(), mask.numpy(), how, layers))
    more_states, more_mask = padded(states, mask, left, right)
    assert_same(pool(tuple(more_states), more_mask, how, layers), found)


def test_a_mean_that_forgets_the_mask_does_change():
    """The control: were `pool` wrong, the test above would show it."""
    states, mask = torch.randn(4, 2, 5, 3), torch.ones(2, 5, dtype=torch.int64)
    more_states, _ = padded(states, mask, 0, 1)
    assert not torch.allclose(more_states[-1].mean(dim=1), states[-1].mean(dim=1), atol=1.0)


def test_unknown_pooling_is_refused(family_dirs):
    with pytest.raises(ValueError, match="pooling is 'sum', expected one of mean, cls, max"):
        SentenceEncoder.from_pretrained(family_dirs["bert"], pooling="sum")
    with pytest.raises(ValueError, match="pooling is 'sum'"):
        pool((torch.zeros(1, 1, 1),), torch.ones(1, 1), "sum")


@pytest.mark.parametrize("settings", [{"layers": 0}, {"layers": 5}, {"max_length": 2}, {"max_length": 65}])
def test_impossible_settings_are_refused(settings: dict, family_dirs):
    name, value = next(iter(settings.items()))
    with pytest.raises(ValueError, match=f"{name} is {value}, expected"):
        SentenceEncoder.from_pretrained(family_dirs["bert"], **settings)


# ------------------------------------------------------------------------------------------------------ the families


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_family_with_every_pooling(family_dir, pooling: str, tmp_path):
    encoder = SentenceEncoder.from_pretrained(family_dir, pooling=pooling, layers=2)
    texts = [*SHORT, LONG]
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, 32)
    assert encoder.max_length == 64
    for text, vector in zip(texts, vectors, strict=True):
        assert_same(encoder.encode([text])[0], vector)  # alone, a text has no padding
    assert (vectors @ vectors.T).fill_diagonal_(0).max() < 0.9999  # different texts, different vectors
    encoder.save_pretrained(tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(texts), vectors)
    assert (again.pooling, again.layers, again.max_length) == (pooling, 2, 64)


def test_a_saved_encoder_of_any_family_is_a_sentence_transformer(family_dir, tmp_path):
    encoder = SentenceEncoder.from_pretrained(family_dir)
    encoder.save_pretrained(tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert_same(encoder.encode([*SHORT, LONG]), theirs.encode([*SHORT, LONG]))


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("projection", [None, 16])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_saved_settings_hold_in_sentence_transformers(
    pooling: str, projection: int | None, normalize: bool, family_dirs, tmp_path
):
    settings = {"pooling": pooling, "layers": 3, "projection": projection, "normalize": normalize, "max_length": 32}
    encoder = SentenceEncoder.from_pretrained(family_dirs["bert"], **settings)
    if projection:
        torch.nn.init.normal_(encoder.projection[2].weight)  # not all ones, as at the start
    encoder.save_pretrained(tmp_path)
    vectors = encoder.encode([*SHORT, LONG])
    assert vectors.shape == (5, projection or 32)
    assert_same(vectors, SentenceTransformer(str(tmp_path), device="cpu").encode([*SHORT, LONG]))
    assert torch.equal(SentenceEncoder.from_pretrained(tmp_path).encode([*SHORT, LONG]), vectors)


def test_minilm_saved_and_loaded(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(SHORT), encoder.encode(SHORT))
    assert again.max_length == 256
    assert_same(again.encode(SHORT), SentenceTransformer(str(tmp_path), device="cpu").encode(SHORT))


@pytest.mark.parametrize("name", [None, "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", find_minilm()])
def test_minilm_by_any_of_its_names(name, encoder):
    found = SentenceEncoder.from_pretrained(name)
    assert found.max_length == 256
    assert torch.equal(found.encode(SHORT[1:2]), encoder.encode(SHORT[1:2]))


def test_a_backbone_of_two_layers_needs_no_settings(family_dirs, tmp_path):
    shutil.copytree(family_dirs["bert"], tmp_path, dirs_exist_ok=True)
    config = AutoConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert SentenceEncoder.from_pretrained(tmp_path).encode(SHORT).shape == (4, 32)


def test_settings_given_at_loading_win_over_the_saved_ones(family_dirs, tmp_path):
    SentenceEncoder.from_pretrained(family_dirs["bert"], pooling="max", projection=8).save_pretrained(tmp_path)
    found = SentenceEncoder.from_pretrained(tmp_path, pooling="cls", projection=None)
    assert (found.pooling, found.dim) == ("cls", 32)
    assert_same(found.encode(SHORT), SentenceEncoder.from_pretrained(family_dirs["bert"], pooling="cls").encode(SHORT))


def test_weights_are_loaded_in_float32_whatever_they_are_stored_in(family_dirs, tmp_path):
    shutil.copytree(family_dirs["bert"], tmp_path, dirs_exist_ok=True)
    AutoModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    assert {p.dtype for p in SentenceEncoder.from_pretrained(tmp_path).parameters()} == {torch.float32}


def test_saving_says_nothing_and_leaves_nothing_behind(tiny, tmp_path, capfd):
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.save_pretrained(tmp_path / "deep" / "model")
    assert capfd.readouterr() == ("", "")
    assert not [path for path in (tmp_path / "deep" / "model").iterdir() if path.name.startswith(".")]


# ------------------------------------------------------------------------------------------------ what can't be loaded


@pytest.fixture
def saved(tiny, tmp_path: Path) -> Path:
    """A folder written by `save_pretrained`."""
    tiny.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


@pytest.fixture
def published(family_dirs, tmp_path: Path) -> Path:
    """A folder as Hugging Face writes it, without hashes."""
    return Path(shutil.copytree(family_dirs["bert"], tmp_path / "published"))


@pytest.mark.parametrize("origin", ["saved", "published"])
@pytest.mark.parametrize("keep", [0, 5, 1000, -1])
def test_truncated_weights_are_refused(origin: str, keep: int, request):
    path = request.getfixturevalue(origin) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        SentenceEncoder.from_pretrained(path.parent)


def test_one_changed_byte_in_saved_weights_is_noticed(saved):
    raw = bytearray((saved / "model.safetensors").read_bytes())
    raw[-1] ^= 1
    (saved / "model.safetensors").write_bytes(raw)
    with pytest.raises(ValueError, match=r"model\.safetensors: its SHA-256"):
        SentenceEncoder.from_pretrained(saved)


def test_truncated_projection_is_refused(family_dirs, tmp_path):
    SentenceEncoder.from_pretrained(family_dirs["bert"], projection=8).save_pretrained(tmp_path)
    (tmp_path / "projection.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"projection\.safetensors"):
        SentenceEncoder.from_pretrained(tmp_path)


def test_weights_of_another_architecture_are_refused(published, family_dirs):
    shutil.copy(family_dirs["distilbert"] / "config.json", published)
    with pytest.raises(ValueError, match=r"published: no weights for .* expected a distilbert encoder"):
        SentenceEncoder.from_pretrained(published)


def test_weights_of_another_shape_are_refused(published):
    config = json.loads((published / "config.json").read_text())
    (published / "config.json").write_text(json.dumps({**config, "intermediate_size": 128}))
    with pytest.raises(ValueError, match="published"):
        SentenceEncoder.from_pretrained(published)


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none: neither a directory here nor a model that the hub would give"):
        SentenceEncoder.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="no-such/model"):
        SentenceEncoder.from_pretrained("no-such/model")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_folder_from_which_something_is_missing(name: str, published):
    for path in published.glob("tokenizer*" if name == "tokenizer.json" else name):
        path.unlink()
    with pytest.raises(OSError, match="published"):
        SentenceEncoder.from_pretrained(published)


@pytest.mark.parametrize("name", ["config.json", "encoder.json", "tokenizer.json", "tokenizer_config.json"])
def test_damaged_descriptions_are_refused_by_name(name: str, saved):
    (saved / name).write_bytes((saved / name).read_bytes()[:40])
    with pytest.raises((ValueError, OSError), match=re.escape(str(saved))):
        SentenceEncoder.from_pretrained(saved)


def test_a_hash_can_be_demanded(published):
    right = sha256_of(published / "model.safetensors")
    assert SentenceEncoder.from_pretrained(published, sha256=right).dim == 32
    with pytest.raises(ValueError, match=rf"SHA-256 is {right}, expected {SHA256}"):
        SentenceEncoder.from_pretrained(published, sha256=SHA256)


def test_what_calls_itself_minilm_must_be_it(published):
    impostor = published.rename(published.with_name("all-MiniLM-L6-v2"))
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        SentenceEncoder.from_pretrained(impostor)


def test_dropout_is_that_of_torch(tiny):
    """Drops its share, keeps the mean, drops the same in the gradient, and is what the backbone uses."""
    torch.manual_seed(0)
    layer, x = Dropout(0.1), torch.ones(1000, 1001, requires_grad=True)
    found = layer(x)
    found.sum().backward()
    assert (found == 0).float().mean().item() == pytest.approx(26 / 256, abs=2e-3)  # 0.1 in steps of 1/256
    assert found.mean().item() == pytest.approx(1, abs=2e-3)
    assert torch.equal(x.grad, found.detach())
    by_row, by_column = (found == 0).float().mean(1), (found == 0).float().mean(0)
    assert max((by_row - 0.1016).abs().max(), (by_column - 0.1016).abs().max()) < 0.05  # no place is favoured
    assert not torch.equal(layer(x), found)
    assert torch.equal(layer.eval()(x), x) and torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()
    assert layer.train()(x.bfloat16()).dtype == torch.bfloat16
    assert {type(module) for module in tiny.backbone.modules() if isinstance(module, torch.nn.Dropout)} == {Dropout}
