"""The way from texts to padded batches: what a token covers in any script, labels per token, batches by length."""

import sys
import types
import warnings
from unicodedata import normalize

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from mtl_helpers import TASKS, Task
from mtl_helpers.batches import collate, length_batches, make_examples, tokenize
from mtl_helpers.minilm import find_minilm
from mtl_helpers.progress import progress
from mtl_helpers.tasks import IGNORE

ENTITIES = TASKS[3]
ANA = "Ana flew to Oslo."
SCRIPTS = {  # what is special: (text before the span, span, text behind it)
    "Latin": ("In New\u00a0York met ", "Zsófia", "'s  Łódź."),
    "Latin, decomposed": ("Wir sahen ", "Rene\u0301", " dort"),
    "Latin, two marks": ("Tôi ở ", "Hue\u0302\u0301", " nay"),
    "ligatures": ("At ", "½ Oﬃ", " now"),
    "Arabic": ("زار ", "مُحَمَّدٌ", " القاهرةَ أمس"),
    "Hebrew": ("ראה אֶת ", "מֹשֶׁהָ", " שם"),
    "Devanagari": ("कल ", "दिल्ली जगत्", " में"),
    "Thai": ("ฉันเห็น ", "สามี่", " ที่ กรุงเทพฯ"),
    "Chinese": ("我在 ", "東京", " 见他"),
    "Japanese, decomposed": ("昨日 ", "か\u3099き\u3099", " 会った"),
    "Japanese, half width": ("昨日 ", "ｶﾞｷﾞ", " 会った"),
    "Chinese, variation": ("在 ", "葛\U000e0100", " 城"),
    "Korean, decomposed": (normalize("NFD", "어제 "), normalize("NFD", "한국"), normalize("NFD", " 에서")),
    "emoji, variation": ("I ", "❤\ufe0f", " you"),
    "emoji, joined": ("the ", "🏳\ufe0f\u200d🌈 👨\u200d👩\u200d👧", " came"),
    "emoji, skin": ("ok ", "👍🏽", " then"),
    "emoji, flag": ("in ", "🏴\U000e0067\U000e0062\U000e007f", " now"),
    "keycap": ("press ", "7\ufe0f\u20e3", " now"),
    "soft hyphen": ("the ", "Donau\u00addampf\u00ad", " ship"),
    "joiners": ("به ", "می\u200cخواهم\u200c \u0915\u094d\u200d", " گفت"),
    "dropped": ("see ", "Os\x07lo\x07\ufffd", " now"),
}


@pytest.fixture(scope="module")
def minilm() -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(find_minilm())


# WordPiece; byte pairs, trimmed and not; Unigram behind SentencePiece's sign for a space, with various normalisers
@pytest.fixture(scope="module", params=["minilm", "roberta", "modernbert", "albert", "deberta-v2", "xlm-roberta"])
def tokenizer(request, minilm, family_dirs) -> PreTrainedTokenizerBase:
    if request.param == "minilm":
        return minilm
    tokenizer = AutoTokenizer.from_pretrained(family_dirs[request.param])
    if request.param == "xlm-roberta":
        tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()  # much like the real one's
    return tokenizer


# ----------------------------------------------------------------------------------------------- spans in any script


@pytest.mark.parametrize("script", SCRIPTS)
def test_gold_spans_come_back_in_any_script(script: str, tokenizer):
    before, span, behind = SCRIPTS[script]
    texts = [before + span + behind, span + behind, before + span, span]
    places = [(text.index(span), text.index(span) + len(span)) for text in texts]
    table = pd.DataFrame({"text": texts, "entities": [[(*place, "PER")] for place in places]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = make_examples(table, tokenizer, [ENTITIES], 256)
    for example, gold in zip(examples, table["entities"], strict=True):
        assert ENTITIES.decode(example["labels"]["entities"], example["offsets"]) == gold == example["gold"]["entities"]


@given(pieces=st.lists(st.sampled_from([c for part in SCRIPTS.values() for s in part for c in s] + list(" \n\t"))))
def test_tokens_of_any_text_are_in_order_and_within_it(pieces: list[str], tokenizer):
    text = "".join(pieces)
    raw = tokenizer([text], return_offsets_mapping=True)["offset_mapping"][0]
    (example,) = tokenize([text], tokenizer, 10_000)
    offsets = example["offsets"]
    assert len(offsets) == len(raw) == len(example["input_ids"]) and offsets[0] == offsets[-1] == (0, 0)
    inner = offsets[1:-1]
    assert inner == sorted(inner) and all(0 <= start <= end <= len(text) for start, end in inner)
    surfaces = [text[start:end] for start, end in inner]
    assert surfaces == [surface.strip() for surface in surfaces]
    covered = {i for start, end in offsets for i in range(start, end)}
    assert not [i for start, end in raw for i in range(start, end) if i not in covered and not text[i].isspace()]


def test_every_sentence_of_the_corpus_comes_back(corpus, minilm):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        examples = make_examples(corpus, minilm, [ENTITIES], 512)
    for example, gold in zip(examples, corpus["entities"], strict=True):
        codes, offsets = example["labels"]["entities"], example["offsets"]
        assert ENTITIES.decode(codes, offsets) == gold
        assert [code == IGNORE for code in codes] == [start == end for start, end in offsets]


WARNED = [  # text, gold spans, how many don't come back, what is said of the first
    (ANA, [(0, 2, "PER")], 1, "(0, 2, 'PER') 'An' became (0, 3, 'PER') 'Ana'"),
    (ANA, [(0, 3, "PER"), (13, 16, "LOC")], 1, "(13, 16, 'LOC') 'slo' became (12, 16, 'LOC') 'Oslo'"),
    (ANA, [(0, 1, "PER"), (1, 3, "ORG")], 2, "(0, 1, 'PER') 'A' became (0, 3, 'ORG') 'Ana'"),  # both in one token
    (
        "Ana likes Ana Duarte and Oslo.",
        [(0, 3, "PER"), (10, 20, "PER"), (25, 29, "LOC")],
        2,
        "'Ana Duarte' became nothing",
    ),
    ("Ana likes Ana Duarte and Oslo.", [(25, 29, "LOC")], 1, "(25, 29, 'LOC') 'Oslo' became nothing"),
    ("Ana likes Ana Duarte and Oslo.", [(10, 13, "PER")], 0, ""),  # ends where the text is cut
    (ANA, [], 0, ""),
]


@pytest.mark.parametrize(("text", "gold", "wrong", "said"), WARNED)
def test_spans_that_do_not_come_back_are_counted_in_one_warning(text: str, gold: list, wrong: int, said: str, minilm):
    rows = ["Ok.", text, text]
    table = pd.DataFrame({"text": rows, "entities": [None, gold, gold]}, index=[7, 7, 9])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        examples = make_examples(table, minilm, [ENTITIES], max_length=5 if "likes" in text else 64)
    assert examples[1]["gold"]["entities"] == gold
    assert len(caught) == bool(wrong)
    for warning in caught:
        message = str(warning.message)
        where = f"row 1, column entities, text {text!r}: "
        pieces = [f"{2 * wrong} spans ", where, f"{said}. Correct the spans, or split long texts"]
        assert [piece for piece in pieces if piece not in message] == [], message
        assert warning.filename == __file__  # points to the caller's line


def test_examples_of_a_table(minilm):
    entities = [[(0, 3, "PER")], None, []]
    table = pd.DataFrame({"text": [ANA] * 3, "topic": ["health", None, None], "entities": entities})
    examples = make_examples(table, minilm, TASKS, 256)
    assert [example["labels"]["topic"] for example in examples] == [2, IGNORE, IGNORE]
    assert [example["labels"]["sentiment"] for example in examples] == [IGNORE] * 3  # there is no such column
    codes = [example["labels"]["entities"] for example in examples]
    assert codes == [[IGNORE, 1, 0, 0, 0, 0, IGNORE], [IGNORE] * 7, [IGNORE, 0, 0, 0, 0, 0, IGNORE]]
    assert list(examples[0]["gold"].values()) == ["health", None, None, [(0, 3, "PER")]]
    assert [example["gold"]["entities"] for example in examples] == entities
    assert make_examples(table[:0], minilm, TASKS, 256) == []
    assert "labels" not in make_examples(table, minilm, [], 256)[0]
    dishes = Task("dishes", ("FOOD",), "token")
    assert make_examples(table, minilm, [dishes], 256)[0]["labels"] == {"dishes": [IGNORE] * 7}


# ------------------------------------------------------------------------------------------------------- tokenising


def test_tokenize_gives_ids_and_places_and_cuts_by_tokens(minilm):
    (example,) = tokenize(["Zsófia's hat"], minilm, 256)
    assert minilm.convert_ids_to_tokens(example["input_ids"])[0] == "[CLS]"
    assert "".join("Zsófia's hat"[a:b] for a, b in example["offsets"]) == "Zsófia'shat"
    assert example["complete"]
    long, fits = tokenize(["word " * 10_000, "word " * 254], minilm, 256)
    assert (len(long["input_ids"]), long["complete"]) == (256, False)
    assert (len(fits["input_ids"]), fits["complete"]) == (256, True)
    assert long["input_ids"][-1] == minilm.sep_token_id
    texts = ["One.", "Two."]
    for form in (tuple(texts), (text for text in texts), pd.Series(texts, index=[7, 3]), pd.Series(texts).to_numpy()):
        assert tokenize(form, minilm, 256) == tokenize(texts, minilm, 256)
    assert tokenize([], minilm, 256) == tokenize(pd.Series([], dtype=object), minilm, 256) == []


NO_TEXTS = {  # what is said: instead of texts
    r"one string, expected a list of strings: write \[text\]": "One text.",
    "found one string": b"One text.",
    r"found a DataFrame, expected a list of strings: write table\['text'\]": pd.DataFrame({"text": ["One."]}),
    r"found a dict, .* write table\['text'\]": {"text": ["One."]},
    r"found a mappingproxy, .* write table\['text'\]": types.MappingProxyType({"text": ["One."]}),
    "text 1 is None of type NoneType, expected a string": ["One.", None],
    "text 0 is nan of type float": [float("nan")],
    "of type bytes": [b"One."],
    "of type list": [["One."]],
    r"text 1 holds half a surrogate pair, .* 'half \\ud83d'": ["One.", "half \ud83d"],
}


@pytest.mark.parametrize("message", NO_TEXTS)
def test_what_is_no_list_of_texts_is_refused(message: str, minilm):
    with pytest.raises(ValueError if "surrogate" in message else TypeError, match=message):
        tokenize(NO_TEXTS[message], minilm, 256)


# ---------------------------------------------------------------------------------------------------------- batches


@given(
    lengths=st.lists(st.integers(1, 300), max_size=60),
    budget=st.integers(1, 600),
    seed=st.none() | st.integers(0, 9),
)
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int, seed: int | None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = length_batches(lengths, budget, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)


def test_the_longest_come_first_or_a_generator_reshuffles_at_each_call():
    assert length_batches([3, 9, 5, 9, 1], 10) == [[1], [3], [2, 0], [4]]
    assert length_batches([5, 5, 5], 10) == [[0, 1], [2]]
    lengths = [length for length in range(1, 21) for _ in range(10)]
    generator = torch.Generator().manual_seed(0)
    first, second = length_batches(lengths, 100, generator), length_batches(lengths, 100, generator)
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert length_batches(lengths, 100, torch.Generator().manual_seed(0)) == first


def test_collate_pads_each_thing_with_its_own_value(minilm):
    table = pd.DataFrame({"text": [ANA, "Hi"], "topic": ["health", None], "entities": [[(0, 3, "PER")], []]})
    batch = collate(make_examples(table, minilm, TASKS, 256), pad_id=7)
    assert set(batch) == {"input_ids", "attention_mask", "labels"}
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 7)
    assert batch["input_ids"][1, 3:].tolist() == [7] * 4
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert batch["labels"]["topic"].tolist() == [2, IGNORE]
    assert batch["labels"]["entities"][1].tolist() == [IGNORE, 0, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]
    plain = collate(tokenize([ANA, "Hi"], minilm, 256), pad_id=0)
    assert set(plain) == {"input_ids", "attention_mask"}
    assert all(tensor.dtype == torch.int64 for tensor in (*plain.values(), *batch["labels"].values()))


# --------------------------------------------------------------------------------------------------------- progress


def test_progress_gives_every_item_and_prints_nothing_where_there_is_no_terminal(capfd):
    assert list(progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")


def test_progress_in_a_notebook_is_one_line_that_is_erased_in_the_end(monkeypatch, capfd):
    shell = types.SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bar = progress(range(3), "counting")
    bar.delay = bar.mininterval = 0
    bar.start_t -= 10
    assert list(bar) == [0, 1, 2]
    shown, errors = capfd.readouterr()
    assert "counting" in shown and "3/3" in shown and "\n" not in shown and errors == ""
    assert shown.rstrip("\r").rpartition("\r")[2].strip() == ""
    monkeypatch.setenv("TQDM_DISABLE", "1")  # as where the committed outputs are made
    assert list(progress(range(3), "counting")) == [0, 1, 2]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("shell", [None, object()], ids=["kernels are only imported", "IPython in a terminal"])
def test_progress_outside_a_notebook_leaves_standard_output_alone(shell, monkeypatch, capfd):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    bar = progress(range(3), "counting")
    bar.delay = 0
    assert list(bar) == [0, 1, 2] and capfd.readouterr() == ("", "")
