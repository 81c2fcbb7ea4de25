"""Vectors: the same as sentence-transformers', for any text, any pooling, any family, with any padding."""

import json
import pickle
import re
import resource
import shutil
import threading
import urllib.request
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules as theirs
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions
from transformers.models.bert.modeling_bert import BertEncoder

from experiments.public import load_public
from mtl_helpers import SentenceEncoder, runtime
from mtl_helpers import encoder as module
from mtl_helpers.backbones import layers_of, longest_input
from mtl_helpers.batches import collate, tokenize
from mtl_helpers.encoder import POOLINGS, Dropout, pool
from mtl_helpers.folders import replacing, sha256_of
from mtl_helpers.minilm import SHA256, find_minilm
from mtl_helpers.runtime import bfloat16_is_fast, inference

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
TEXTS = [*SHORT, "word after word " * 350]  # the last of more than 1,000 words


def assert_same(actual: Tensor, expected: Tensor | np.ndarray):
    torch.testing.assert_close(actual, torch.as_tensor(expected), atol=1e-5, rtol=0)


def assert_as_sentence_transformers(encoder: SentenceEncoder, folder: Path):
    assert_same(encoder.encode(TEXTS), SentenceTransformer(str(folder), device="cpu").encode(TEXTS))


def batch_of(encoder: SentenceEncoder, texts: list[str] = SHORT) -> dict[str, Tensor]:
    return collate(tokenize(texts, encoder.tokenizer, encoder.max_length), encoder.tokenizer.pad_token_id)


def edit(path: Path, **values: object):
    """Change values in a JSON file, which may not be there."""
    path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **values}))


# --------------------------------------------------------------------------------------- against sentence-transformers


@pytest.fixture(scope="module")
def odd_vectors(encoder) -> Tensor:
    return encoder.encode(list(ODD.values()))


@pytest.mark.parametrize("name", ODD)
def test_odd_texts_have_the_vectors_of_sentence_transformers(name: str, odd_vectors, reference):
    assert_same(odd_vectors[list(ODD).index(name)], reference.encode([ODD[name]])[0])


def test_corpus_sentences_have_the_vectors_of_sentence_transformers(encoder, reference, corpus):
    texts = corpus["text"].sample(300, random_state=1).tolist()
    vectors = encoder.encode(texts)
    assert_same(vectors, reference.encode(texts))
    assert vectors.dtype == torch.float32
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(300))


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
    vectors = encoder.encode(texts, max_tokens=8)
    for text, vector in zip(texts, vectors, strict=True):
        assert_same(vector, encoder.encode([text])[0])
    assert_same(encoder.encode(texts[::-1]), vectors.flip(0))


def test_no_texts_and_a_single_string(encoder):
    assert encoder.encode([]).shape == (0, 384)
    assert encoder.encode([]).dtype == torch.float32
    with pytest.raises(TypeError, match="expected a list"):
        encoder.encode("Behold!")


# --------------------------------------------------------------------------------------------- mode, threads, processes


def modes(encoder: SentenceEncoder) -> dict[str, bool]:
    return {name: part.training for name, part in encoder.named_modules()}


def test_encode_runs_without_dropout_and_leaves_each_part_in_the_mode_it_was_in(tiny):
    expected = tiny.encode(SHORT)
    tiny.train().backbone.embeddings.eval()
    before = modes(tiny)
    assert len(set(before.values())) == 2
    assert torch.equal(tiny.encode(SHORT), expected)
    assert modes(tiny) == before


def test_a_failure_leaves_the_mode_as_well(tiny, monkeypatch):
    tiny.train()
    monkeypatch.setattr(module, "pool", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tiny.encode(SHORT)
    assert all(modes(tiny).values())


def test_threads_may_share_an_encoder_that_is_left_in_training_mode(family_dirs):
    tiny = SentenceEncoder.from_pretrained(family_dirs["bert"])
    expected = [tiny.encode([text]) for text in TEXTS]
    shared = SentenceEncoder.from_pretrained(family_dirs["bert"]).train()  # never run before: no state is made ready
    assert shared.tokenizer.backend_tokenizer.truncation["max_length"] == 64  # which threads could set at once
    with ThreadPoolExecutor(8) as threads:
        vectors = list(threads.map(lambda text: shared.encode([text]), TEXTS * 20))
    assert all(torch.equal(a, b) for a, b in zip(vectors, expected * 20, strict=True))
    assert all(modes(shared).values())


def test_the_last_of_overlapping_uses_restores_the_mode(tiny):
    tiny.train()
    inside, leave = threading.Event(), threading.Event()

    def use_the_backbone():
        with inference(tiny.backbone):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=use_the_backbone)
    thread.start()
    inside.wait(10)
    assert tiny.training and not tiny.backbone.training
    with inference(tiny), inference(tiny):
        leave.set()
        thread.join()
        assert not any(modes(tiny).values())
    assert all(modes(tiny).values())


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
    monkeypatch.setattr(runtime, "_warned", set())
    with pytest.warns(UserWarning, match="this cpu has no fast bfloat16") as caught:
        vectors = [tiny.encode(SHORT * 10, precision="bfloat16", max_tokens=16) for _ in range(3)]
    assert [warning.filename for warning in caught] == [__file__]  # raised within a context manager
    assert torch.equal(vectors[2], tiny.encode(SHORT * 10, max_tokens=16))


def test_unknown_precision_is_refused(tiny):
    with pytest.raises(ValueError, match="precision is 'float16', expected 'float32' or 'bfloat16'"):
        tiny.encode(SHORT, precision="float16")
    assert not runtime._in_use


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision(dtype: torch.dtype, pooling: str, family_dirs):
    torch.manual_seed(0)
    encoder = SentenceEncoder.from_pretrained(family_dirs["bert"], pooling=pooling, projection=16, layers=2)
    expected = encoder.encode(SHORT)
    vectors = encoder.to(dtype).encode(SHORT)
    assert vectors.dtype == torch.float32
    assert (vectors * expected).sum(dim=1).min() > (0.99 if dtype.itemsize == 2 else 1 - 1e-6)
    vectors, states = encoder(batch_of(encoder))
    assert states[0].dtype == vectors.dtype == dtype


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
    row = st.lists(st.integers(0, 1), min_size=length, max_size=length).filter(any)
    mask = torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)))
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
    vectors = pool(tuple(states), mask, how, layers)
    assert_same(vectors, reference_pool(states.numpy(), mask.numpy(), how, layers))
    more_states, more_mask = padded(states, mask, left, right)
    assert_same(pool(tuple(more_states), more_mask, how, layers), vectors)
    assert pool(tuple(states.double()), mask, how, layers).dtype == torch.float64
    half = pool(tuple(states.half()), mask, how, layers)  # sums need more digits, single values don't
    assert half.dtype == (torch.float16 if how in ("cls", "max") else torch.float32)


IMPOSSIBLE = {
    "pooling is 'sum', expected one of mean, cls": {"pooling": "sum"},
    "layers is 0, expected 1 to 4": {"layers": 0},
    "layers is 5, expected 1 to 4": {"layers": 5},
    "max_length is 2, expected 3 to 64": {"max_length": 2},
    "max_length is 65, expected 3 to 64": {"max_length": 65},
    "max_length is 9.5, expected a whole number": {"max_length": 9.5},
    "layers is '2', expected a whole number": {"layers": "2"},
    "projection is 0, expected the width of a vector": {"projection": 0},
    "the projection takes 7 numbers, expected 8": {"projection": nn.Sequential(nn.Linear(32, 8), nn.Linear(7, 8))},
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_impossible_settings_are_refused(message: str, family_dirs):
    with pytest.raises(ValueError, match=message):
        SentenceEncoder.from_pretrained(family_dirs["bert"], **IMPOSSIBLE[message])
    with pytest.raises(ValueError, match="last_layers needs 4 hidden states, found 1"):
        pool((torch.zeros(1, 1, 1),), torch.ones(1, 1), "last_layers", 4)


# ------------------------------------------------------------------------------------------------------ the families


@pytest.mark.parametrize("pooling", POOLINGS)
def test_every_family_with_every_pooling(family_dir, pooling: str):
    encoder = SentenceEncoder.from_pretrained(family_dir, pooling=pooling, layers=2)
    vectors = encoder.encode(TEXTS)
    assert vectors.shape == (5, 32)
    assert encoder.max_length == 64
    for text, vector in zip(TEXTS, vectors, strict=True):
        assert_same(encoder.encode([text])[0], vector)  # alone, a text has no padding
    assert (vectors @ vectors.T).fill_diagonal_(0).max() < 0.9999  # different texts, different vectors


def test_every_family_is_saved_loaded_pickled_and_read_by_sentence_transformers(family_dir, tmp_path):
    encoder = SentenceEncoder.from_pretrained(family_dir, pooling="last_layers", layers=2)
    vectors = encoder.encode(TEXTS)
    encoder.save_pretrained(tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(TEXTS), vectors)
    assert (again.pooling, again.layers, again.max_length) == ("last_layers", 2, 64)
    assert torch.equal(pickle.loads(pickle.dumps(again)).encode(TEXTS), vectors)  # after it was used
    assert_as_sentence_transformers(encoder, tmp_path)


def test_hidden_states_are_those_of_transformers_from_any_layer(family_dir):
    encoder = SentenceEncoder.from_pretrained(family_dir)
    batch = batch_of(encoder, TEXTS)
    with torch.inference_mode():
        backbone = AutoModel.from_pretrained(family_dir).eval()
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        expected = backbone(**inputs, output_hidden_states=True).hidden_states
        vectors, states = encoder(batch)
        assert len(states) == len(expected) == encoder.traits.depth + 1 == 4
        assert all(torch.equal(a, b) for a, b in zip(states, expected, strict=True))
        assert torch.equal(encoder.vectors(states, batch["attention_mask"]), vectors)
        assert encoder.traits.traced and encoder.traits.values is not None
        for depth in range(4):
            upper = encoder.hidden(batch, states[depth], depth)
            assert len(upper) == 4 - depth
            assert all(torch.equal(a, b) for a, b in zip(upper, states[depth:], strict=True))


def test_nothing_below_the_start_is_computed_or_trained(tiny):
    batch, layers = batch_of(tiny), layers_of(tiny.backbone)
    called = []
    for i, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
    states = torch.randn(*batch["input_ids"].shape, 32, requires_grad=True)
    tiny.hidden(batch, states, 1)[-1].sum().backward()
    assert called == [1, 2]
    assert states.grad is not None and layers[1].attention.output.dense.weight.grad is not None
    assert layers[0].attention.output.dense.weight.grad is None
    for depth, start in ((4, states), (-1, states), (2, None)):
        with pytest.raises(ValueError, match=f"depth is {depth} for a backbone of 3 layers"):
            tiny.hidden(batch, start, depth)


def test_a_start_that_would_be_wrong_is_noticed(tiny, monkeypatch):
    """Here the first layer hands something to the others past the states, as in T5."""

    def forward(self: BertEncoder, states: Tensor, mask: Tensor | None = None, **kwargs: object):
        first = None
        for layer in self.layer:
            states = layer(states, mask)
            first = states if first is None else first
            states = states + first
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=states)

    monkeypatch.setattr(BertEncoder, "forward", forward)
    odd = SentenceEncoder(tiny.backbone, tiny.tokenizer)
    assert odd.traits.traced and odd.traits.values is None
    states = odd.hidden(batch_of(odd))
    with pytest.raises(ValueError, match="a pass through bert can't start at layer 1"):
        odd.hidden(batch_of(odd), states[1], 1)
    assert torch.equal(odd.hidden(batch_of(odd), states[3], 3)[0], states[3])


def test_layers_are_found_or_refused_by_name(family_dir):
    backbone = AutoModel.from_pretrained(family_dir)
    if family_dir.name == "albert":
        assert len(layers_of(backbone)) == 0
        with pytest.raises(ValueError, match=r"lower_layers needs layers, but this backbone \(albert\) has no"):
            layers_of(backbone, needed_by="lower_layers")
    else:
        assert len(layers_of(backbone, needed_by="lower_layers")) == 3


LENGTHS = {  # family: positions that its settings name, tokens that it takes
    "modernbert": (8192, 8192),
    "deberta-v2": (512, 512),
    "xlm-roberta": (514, 512),
    "albert": (512, 512),
}


@pytest.mark.parametrize("limit", [None, 40])
@pytest.mark.parametrize("family", LENGTHS)
def test_the_length_is_that_of_the_positions_or_of_the_tokenizer(family: str, limit: int | None, family_dirs, tmp_path):
    positions, longest = LENGTHS[family]
    folder = Path(shutil.copytree(family_dirs[family], tmp_path, dirs_exist_ok=True))
    config = AutoConfig.from_pretrained(folder, max_position_embeddings=positions)
    AutoModel.from_config(config).save_pretrained(folder)
    if limit:
        edit(folder / "tokenizer_config.json", model_max_length=limit)
    assert SentenceEncoder.from_pretrained(folder).max_length == (limit or longest)
    edit(folder / "sentence_bert_config.json", max_seq_length=10_000)
    assert SentenceEncoder.from_pretrained(folder).max_length == longest
    edit(folder / "sentence_bert_config.json", max_seq_length=33)
    assert SentenceEncoder.from_pretrained(folder).max_length == 33


@pytest.mark.parametrize(("positions", "longest"), [(-1, 512), (0, 512), (77, 77)])
def test_the_length_without_a_table_of_positions(positions: int, longest: int, tiny):
    tiny.backbone.embeddings.position_embeddings = nn.Identity()
    tiny.backbone.config.max_position_embeddings = positions
    assert longest_input(tiny.backbone) == longest


def test_what_is_no_encoder_is_refused_by_name(tiny):
    shape = {"d_model": 32, "d_ff": 32, "num_layers": 2, "num_heads": 2, "vocab_size": 100}
    with pytest.raises(ValueError, match="t5: not a single stack of transformer layers"):
        SentenceEncoder(AutoModel.from_config(AutoConfig.for_model("t5", **shape)), tiny.tokenizer)
    tiny.tokenizer.pad_token = None
    with pytest.raises(ValueError, match="BertTokenizer has no padding token"):
        SentenceEncoder(tiny.backbone, tiny.tokenizer)


@pytest.mark.parametrize("family", ["squeezebert", "longformer"])
def test_states_that_can_not_be_traced_are_left_to_transformers(family: str, tiny):
    """SqueezeBERT calls its layers in a way of its own, those of Longformer see more padding."""
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 32}
    shape |= {"vocab_size": 360, "max_position_embeddings": 64}
    shape |= {"embedding_size": 32} if family == "squeezebert" else {"attention_window": [16, 16]}
    encoder = SentenceEncoder(AutoModel.from_config(AutoConfig.for_model(family, **shape)), tiny.tokenizer)
    batch = batch_of(encoder)
    assert [state.shape for state in encoder.hidden(batch)] == [(*batch["input_ids"].shape, 32)] * 3
    assert not encoder.traits.traced and encoder.traits.values is None
    assert encoder.encode(SHORT).shape == (4, 32)


# ------------------------------------------------------------------------------------- folders of sentence-transformers


@pytest.fixture
def foreign(family_dirs, tmp_path: Path):
    """Folders as sentence-transformers writes them: a function of what follows the transformer."""

    def write(*modules: nn.Module, family: str = "bert") -> Path:
        torch.manual_seed(1)
        transformer = theirs.Transformer(str(family_dirs[family]), max_seq_length=48)
        SentenceTransformer(modules=[transformer, *modules], device="cpu").save(str(tmp_path / "foreign"))
        return tmp_path / "foreign"

    return write


def mixture(weights: list[float]) -> theirs.WeightedLayerPooling:
    start = {"num_hidden_layers": 3, "layer_start": 4 - len(weights)}
    return theirs.WeightedLayerPooling(32, **start, layer_weights=nn.Parameter(torch.tensor(weights)))


HONOURED = {  # modules behind the transformer; ours
    "no Normalize": (lambda: [theirs.Pooling(32)], {"normalize": False, "dim": 32}),
    "mean": (lambda: [theirs.Pooling(32, ("mean",)), theirs.Normalize()], {"normalize": True, "max_length": 48}),
    "Dense": (lambda: [theirs.Pooling(32), theirs.Dense(32, 16)], {"dim": 16}),
    "a linear map alone": (
        lambda: [theirs.Pooling(32), theirs.Dense(32, 16, bias=False, activation_function=nn.Identity())],
        {"dim": 16, "normalize": False},
    ),
    "several": (
        lambda: [
            *(theirs.Pooling(32), theirs.LayerNorm(32), theirs.Dropout(0.3)),
            *(theirs.Dense(32, 64, activation_function=nn.GELU()), theirs.Dense(64, 8), theirs.Normalize()),
        ],
        {"dim": 8, "normalize": True},
    ),
}


@pytest.mark.parametrize("name", HONOURED)
def test_a_foreign_folder_is_honoured_and_saved_again(name: str, foreign, tmp_path):
    modules, ours = HONOURED[name]
    folder = foreign(*modules())
    encoder = SentenceEncoder.from_pretrained(folder)
    assert_as_sentence_transformers(encoder, folder)
    assert {key: getattr(encoder, key) for key in ours} == ours
    encoder.save_pretrained(tmp_path / "again")
    assert_as_sentence_transformers(encoder, tmp_path / "again")
    assert torch.equal(SentenceEncoder.from_pretrained(tmp_path / "again").encode(TEXTS), encoder.encode(TEXTS))


def test_folders_of_older_versions_are_honoured(foreign):
    """Pooling by flags, settings under older names, a transformer in a folder of its own, no folder for Normalize."""
    folder = foreign(theirs.Pooling(32, "cls"), theirs.Normalize())
    expected = SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    flags = {f"pooling_mode_{name}": name == "cls_token" for name in ("mean_tokens", "cls_token", "lasttoken")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 32, **flags}))
    shutil.rmtree(folder / "2_Normalize")
    (folder / "0_Transformer").mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and "modules" not in path.name]:
        path.rename(folder / "0_Transformer" / path.name)
    (folder / "0_Transformer" / "sentence_bert_config.json").write_text('{"max_seq_length": 48}')
    entries = [(0, "0_Transformer", "Transformer"), (1, "1_Pooling", "Pooling"), (2, "2_Normalize", "Normalize")]
    listed = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{kind}"} for i, p, kind in entries
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    assert_same(SentenceEncoder.from_pretrained(folder).encode(TEXTS), expected)
    assert_as_sentence_transformers(SentenceEncoder.from_pretrained(folder), folder)


BOTH = ("mean", "max")
REFUSED_MODULES = {
    "the pooling lasttoken": lambda: [theirs.Pooling(32, "lasttoken")],
    "the pooling mean . max": lambda: [theirs.Pooling(32, BOTH)],
    "the module .*CNN": lambda: [theirs.CNN(32, 8), theirs.Pooling(24)],
    "use_residual = True": lambda: [theirs.Pooling(32), theirs.Dense(32, 32, use_residual=True)],
    "module_input_name = 'token_embeddings'": lambda: [
        theirs.Pooling(32),
        theirs.Normalize(module_input_name="token_embeddings"),
    ],
    "the order Transformer, Dense, Pooling": lambda: [
        theirs.Dense(32, 16, module_input_name="token_embeddings"),
        theirs.Pooling(16),
    ],
    "the activation torch.nn.modules.activation.PReLU": lambda: [
        *(theirs.Pooling(32), theirs.Dense(32, 16, activation_function=nn.PReLU()))
    ],
    "the order Transformer .expected": lambda: [],
    "WeightedLayerPooling whose weights differ": lambda: [mixture([1.0, 2.0]), theirs.Pooling(32)],
    "the pooling max": lambda: [mixture([1.0, 1.0]), theirs.Pooling(32, "max")],
}


@pytest.mark.parametrize("message", REFUSED_MODULES)
def test_a_module_that_can_not_be_honoured_is_refused_by_name(message: str, foreign):
    folder = foreign(*REFUSED_MODULES[message]())
    with pytest.raises(ValueError, match=f"foreign.*{message}.* can't be honoured here.*SentenceTransformer"):
        SentenceEncoder.from_pretrained(folder)


REFUSED_SETTINGS = {
    "which puts 'query: ' before": (
        "config_sentence_transformers.json",
        {"prompts": {"query": "query: "}, "default_prompt_name": "query"},
    ),
    "truncate_dim = 16": ("config_sentence_transformers.json", {"truncate_dim": 16}),
    "model_type = 'SparseEncoder'": ("config_sentence_transformers.json", {"model_type": "SparseEncoder"}),
    "do_lower_case": ("sentence_bert_config.json", {"do_lower_case": True}),
    "processing_kwargs = ": ("sentence_bert_config.json", {"processing_kwargs": {"text": {"padding": False}}}),
    "transformer_task = 'fill-mask'": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}),
    "modality_config = ": ("sentence_bert_config.json", {"modality_config": {"text": {"method": "encode"}}}),
    "something = 'new'": ("1_Pooling/config.json", {"something": "new"}),
    "module_output_name = 'token_embeddings'": ("2_Dense/config.json", {"module_output_name": "token_embeddings"}),
    "the activation their_code.Swish": ("2_Dense/config.json", {"activation_function": "their_code.Swish"}),
}


@pytest.mark.parametrize("message", REFUSED_SETTINGS)
def test_a_setting_that_can_not_be_honoured_is_refused_by_name(message: str, foreign):
    folder = foreign(theirs.Pooling(32), theirs.Dense(32, 16), family="roberta")  # its tokenizer keeps capitals
    name, values = REFUSED_SETTINGS[message]
    edit(folder / name, **values)
    with pytest.raises(ValueError, match=f"foreign.*{message}"):
        SentenceEncoder.from_pretrained(folder)


def test_settings_without_consequence_are_no_obstacle(foreign):
    folder = foreign(theirs.Pooling(32, include_prompt=False))
    prompts = {"query": "query: ", "document": ""}
    edit(folder / "config_sentence_transformers.json", prompts=prompts, default_prompt_name=None)
    edit(folder / "sentence_bert_config.json", do_lower_case=True)  # so does the tokenizer
    assert_as_sentence_transformers(SentenceEncoder.from_pretrained(folder), folder)


DAMAGED = [  # file, what it holds instead, what the message says
    ("modules.json", "{}", "holds a dict, expected a list"),
    ("modules.json", "[3]", "3 is no module with a type and a path"),
    ("modules.json", '[{"type": "their_code.Pooling", "path": ""}]', "the module their_code.Pooling can't be"),
    (
        "modules.json",
        '[{"type": "sentence_transformers.a.Pooling", "path": "", "kwargs": ["x"]}]',
        "a.Pooling can't be",
    ),
    ("2_Dense/config.json", '{"in_features": 3}', "2_Dense: damaged, or not a Dense"),
    ("2_Dense/model.safetensors", "cut", "2_Dense: damaged, or not a Dense"),
]


@pytest.mark.parametrize(("name", "text", "message"), DAMAGED)
def test_a_damaged_foreign_folder_is_refused_by_name(name: str, text: str, message: str, foreign):
    folder = foreign(theirs.Pooling(32), theirs.Dense(32, 16))
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=f"{folder}.*{message}"):
        SentenceEncoder.from_pretrained(folder)


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
    assert encoder.encode(TEXTS).shape == (5, projection or 32)
    assert_as_sentence_transformers(encoder, tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode(TEXTS), encoder.encode(TEXTS))
    assert str(again.projection) == str(encoder.projection)  # dropout too, for training


@pytest.mark.parametrize("name", [None, "all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", find_minilm()])
def test_minilm_by_any_of_its_names(name, encoder):
    same = SentenceEncoder.from_pretrained(name)
    assert same.max_length == 256
    assert torch.equal(same.encode(SHORT[1:2]), encoder.encode(SHORT[1:2]))


def test_settings_given_at_loading_win_over_the_saved_ones(family_dirs, tmp_path):
    SentenceEncoder.from_pretrained(family_dirs["bert"], pooling="max", projection=8).save_pretrained(tmp_path)
    encoder = SentenceEncoder.from_pretrained(tmp_path, pooling="cls", projection=None)
    assert (encoder.pooling, encoder.dim) == ("cls", 32)
    expected = SentenceEncoder.from_pretrained(family_dirs["bert"], pooling="cls").encode(SHORT)
    assert_same(encoder.encode(SHORT), expected)


def test_weights_are_loaded_in_float32_whatever_they_are_stored_in(family_dirs, tmp_path):
    shutil.copytree(family_dirs["bert"], tmp_path, dirs_exist_ok=True)
    AutoModel.from_pretrained(tmp_path).half().save_pretrained(tmp_path)
    assert {p.dtype for p in SentenceEncoder.from_pretrained(tmp_path).parameters()} == {torch.float32}


# --------------------------------------------------------------------------------------------- saving, and its failures


def test_saving_says_nothing_and_leaves_nothing_behind(tiny, tmp_path, capfd):
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny.save_pretrained(tmp_path / "deep" / "model")
    assert capfd.readouterr() == ("", "")
    assert not [path for path in (tmp_path / "deep" / "model").iterdir() if path.name.startswith(".")]


def test_a_folder_at_home(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    tiny.save_pretrained("~/m")
    assert torch.equal(SentenceEncoder.from_pretrained("~/m").encode(SHORT), tiny.encode(SHORT))
    assert [path.name for path in tmp_path.iterdir() if path.name in ("m", "~")] == ["m"]


@pytest.mark.parametrize("room", [300, 20_000])  # too little for config.json, for the weights
def test_a_full_disk_is_one_error_and_leaves_the_old_model_as_it_was(room: int, tiny, saved):
    expected = {path: sha256_of(path) for path in saved.rglob("*") if path.is_file()}
    torch.nn.init.normal_(tiny.backbone.embeddings.word_embeddings.weight)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))  # longer files can't be written
    try:
        with pytest.raises(OSError, match=r"saved: nothing saved \(.*File too large.*\); free some space or save else"):
            tiny.save_pretrained(saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path: sha256_of(path) for path in saved.rglob("*") if path.is_file()} == expected


def test_a_save_within_a_save_fails_with_one_message(tmp_path):
    with (
        pytest.raises(OSError, match=r"m: nothing saved \(\[Errno 28\] full\); free"),
        replacing(tmp_path / "m") as folder,
        replacing(folder),
    ):
        raise OSError(28, "full")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "m"):  # another error stays what it is
        raise ZeroDivisionError


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


@pytest.mark.parametrize("keep", [0, 5, -1])
def test_truncated_weights_are_refused(keep: int, published):
    path = published / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        SentenceEncoder.from_pretrained(path.parent)


@pytest.mark.parametrize("name", ["model.safetensors", "2_Dense/model.safetensors"])
def test_one_changed_byte_in_saved_weights_is_noticed(name: str, family_dirs, tmp_path):
    SentenceEncoder.from_pretrained(family_dirs["bert"], projection=8).save_pretrained(tmp_path)
    raw = bytearray((tmp_path / name).read_bytes())
    raw[-1] ^= 1
    (tmp_path / name).write_bytes(raw)
    with pytest.raises(ValueError, match=f"{name}: its SHA-256"):
        SentenceEncoder.from_pretrained(tmp_path)


UNWRITABLE = {  # modules.json would say something else
    "an activation first": [nn.Tanh()],
    "an activation behind LayerNorm": [nn.Linear(32, 16), nn.LayerNorm(16), nn.Tanh()],
    "two activations": [nn.Linear(32, 16), nn.Tanh(), nn.ReLU()],
    "an activation with settings": [nn.Linear(32, 16), nn.LeakyReLU(0.5)],
    "LayerNorm with settings": [nn.LayerNorm(32, eps=0.5)],
}


@pytest.mark.parametrize("name", UNWRITABLE)
def test_a_projection_that_can_not_be_written_is_refused(name: str, family_dirs, tmp_path):
    torch.manual_seed(0)
    encoder = SentenceEncoder.from_pretrained(family_dirs["bert"], projection=nn.Sequential(*UNWRITABLE[name]))
    with pytest.raises(ValueError, match=r"the projection \(.*\) can't be written"):
        encoder.save_pretrained(tmp_path / "saved")
    assert not list((tmp_path / "saved").iterdir())


def test_a_pooling_without_its_settings_is_refused(saved):
    (saved / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32}')
    with pytest.raises(ValueError, match="the pooling of no mode"):
        SentenceEncoder.from_pretrained(saved)
    (saved / "1_Pooling" / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"1_Pooling.config\.json: no such file"):
        SentenceEncoder.from_pretrained(saved)


def test_layers_are_never_left_out(published):
    edit(published / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"says 1 layers, but the weights have .*layer\.[12]\."):
        SentenceEncoder.from_pretrained(published)


def test_weights_that_are_no_numbers_are_refused_and_noticed(tiny, published):
    weights = load_file(published / "model.safetensors")
    weights[min(weights)].view(-1)[3] = torch.nan
    save_file(weights, published / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors: holds weights that are no finite numbers"):
        SentenceEncoder.from_pretrained(published)
    tiny.backbone.encoder.layer[1].output.dense.bias.data[0] = torch.inf
    with pytest.raises(FloatingPointError, match="vectors are not finite numbers"):
        tiny.encode(["Behold!"])


def test_a_tokenizer_that_does_not_fit_is_refused(tiny, published):
    tiny.tokenizer.add_tokens(["behold-all-of-this"])
    with pytest.raises(ValueError, match=r"has the token 'behold-all-of-this' with the number .* but this"):
        SentenceEncoder(tiny.backbone, tiny.tokenizer)
    bare = SentenceEncoder.from_pretrained(published).tokenizer
    bare.backend_tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    with pytest.raises(ValueError, match="gives an empty text no token"):
        SentenceEncoder(tiny.backbone, bare)


def test_what_another_model_left_in_a_folder_is_not_read(tiny, tmp_path):
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<strange>"}')
    (tmp_path / "notes.txt").write_text("mine")
    tiny.save_pretrained(tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert again.tokenizer.pad_token_id == tiny.tokenizer.pad_token_id
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_weights_of_another_architecture_are_refused(published, family_dirs):
    shutil.copy(family_dirs["distilbert"] / "config.json", published)
    with pytest.raises(ValueError, match=r"published: no weights for .* expected a distilbert encoder"):
        SentenceEncoder.from_pretrained(published)


@pytest.mark.parametrize("values", [{"intermediate_size": 128}, {"model_type": "unheard-of"}, {"hidden_size": "x"}])
def test_a_description_that_does_not_fit_is_refused(values: dict, published):
    edit(published / "config.json", **values)
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
    with pytest.raises(FileNotFoundError, match=f"published: holds no {name}"):
        SentenceEncoder.from_pretrained(published)


DESCRIPTIONS = ["config.json", "encoder.json", "modules.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_damaged_descriptions_are_refused_by_name(name: str, saved):
    (saved / name).write_bytes((saved / name).read_bytes()[:40])
    with pytest.raises(ValueError, match=re.escape(str(saved / name))):
        SentenceEncoder.from_pretrained(saved)


def test_what_calls_itself_minilm_must_be_it(published):
    impostor = published.rename(published.with_name("all-MiniLM-L6-v2"))
    with pytest.raises(ValueError, match=f"expected {SHA256}"):
        SentenceEncoder.from_pretrained(impostor)


def test_dropout_is_that_of_torch(tiny):
    """Drops its share, keeps the mean, drops the same in the gradient, and is what the backbone uses."""
    torch.manual_seed(0)
    layer, x = Dropout(0.1), torch.ones(1000, 1001, requires_grad=True)
    output = layer(x)
    output.sum().backward()
    assert (output == 0).float().mean().item() == pytest.approx(26 / 256, abs=2e-3)  # 0.1 in steps of 1/256
    assert output.mean().item() == pytest.approx(1, abs=2e-3)
    assert torch.equal(x.grad, output.detach())
    by_row, by_column = (output == 0).float().mean(1), (output == 0).float().mean(0)
    assert max((by_row - 0.1016).abs().max(), (by_column - 0.1016).abs().max()) < 0.05  # no place is favoured
    assert not torch.equal(layer(x), output)
    assert torch.equal(layer.eval()(x), x) and torch.equal(Dropout(0.0)(x), x) and not Dropout(1.0)(x).any()
    assert layer.train()(x.bfloat16()).dtype == torch.bfloat16
    assert {type(module) for module in tiny.backbone.modules() if isinstance(module, torch.nn.Dropout)} == {Dropout}
