"""Labels become class indices and class indices labels, without loss."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_helpers import TASKS, SentenceEncoder, Task
from mtl_helpers.corpus import tokenize
from mtl_helpers.tasks import IGNORE

ENTITIES = TASKS[3]
TEXT = "Ana Duarte flew to Oslo."
#          [CLS]   Ana     Du      ##arte   flew      to        Oslo      .         [SEP]
OFFSETS = [(0, 0), (0, 3), (4, 6), (6, 10), (11, 15), (16, 18), (19, 23), (23, 24), (0, 0)]


def names(codes: list[int]) -> list[str]:
    return ["-" if code == IGNORE else ENTITIES.classes[code] for code in codes]


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (("topic", ("a", "b"), "word"), "level is 'word'"),
        (("", ("a", "b")), "task name ''"),
        (("my task", ("a", "b")), "task name 'my task'"),
        (("text", ("a", "b")), "task name 'text'"),
        (("id", ("a", "b")), "task name 'id'"),
        (("split", ("a", "b")), "task name 'split'"),
        (("topic", ()), "2 or more"),
        (("topic", ("a",)), "2 or more"),
        (("topic", ("a", "a")), "different"),
        (("topic", ("a", "")), "non-empty"),
        (("spans", (), "token"), "1 or more"),
    ],
)
def test_a_task_that_makes_no_sense_is_refused(arguments: tuple, fragment: str):
    with pytest.raises(ValueError, match=re.escape(fragment)):
        Task(*arguments)


def test_classes():
    assert [len(task.classes) for task in TASKS] == [6, 3, 3, 7]
    assert ENTITIES.classes == ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
    assert Task("aspect", ["food", "staff"]).classes == ("food", "staff")
    assert Task("spans", ["X"], "token").classes == ("O", "B-X", "I-X")


def test_index_knows_its_classes_and_no_others():
    assert [TASKS[2].index(label) for label in TASKS[2].labels] == [0, 1, 2]
    assert ENTITIES.index("I-PER") == 2
    with pytest.raises(ValueError, match="'sentiment' has no label 'good', expected one of negative, neutral"):
        TASKS[2].index("good")
    with pytest.raises(ValueError, match="'entities' has no label 'PER'"):
        ENTITIES.index("PER")


def test_subwords_of_a_span_continue_it_and_special_tokens_are_ignored():
    codes = ENTITIES.encode([(0, 10, "PER"), (19, 23, "LOC")], OFFSETS)
    assert names(codes) == ["-", "B-PER", "I-PER", "I-PER", "O", "O", "B-LOC", "O", "-"]


def test_missing_labels_are_ignored():
    assert ENTITIES.encode(None, OFFSETS) == [IGNORE] * len(OFFSETS)
    assert TASKS[0].encode(None, OFFSETS) == IGNORE
    assert names(ENTITIES.encode([], OFFSETS)) == ["-", *"OOOOOOO", "-"]


def test_unknown_labels_are_refused():
    with pytest.raises(ValueError, match="weather"):
        TASKS[0].encode("weather", OFFSETS)
    with pytest.raises(ValueError, match="DATE"):
        ENTITIES.encode([(0, 3, "DATE")], OFFSETS)


def test_adjacent_spans_of_one_type_stay_two():
    spans = [(0, 3, "PER"), (4, 10, "PER")]
    codes = ENTITIES.encode(spans, OFFSETS)
    assert names(codes)[1:4] == ["B-PER", "B-PER", "I-PER"]
    assert ENTITIES.decode(codes, OFFSETS) == spans


@pytest.mark.parametrize(
    ("bio", "spans"),
    [
        ("I-PER", [(0, 1, "PER")]),
        ("O I-PER I-PER", [(1, 3, "PER")]),
        ("B-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("I-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),
        ("O O", []),
        ("", []),
    ],
)
def test_malformed_bio_is_read_like_the_conll_script_does(bio: str, spans: list):
    codes = [ENTITIES.index(name) for name in bio.split()]
    assert ENTITIES.decode(codes, [(i, i + 1) for i in range(len(codes))]) == spans


def test_decode_passes_over_special_tokens_and_what_is_ignored():
    codes = [ENTITIES.index("B-LOC"), ENTITIES.index("B-PER"), IGNORE, ENTITIES.index("I-PER"), ENTITIES.index("I-PER")]
    offsets = [(0, 0), (0, 3), (4, 6), (6, 10), (0, 0)]
    assert ENTITIES.decode(codes, offsets) == [(0, 3, "PER"), (6, 10, "PER")]


def test_decode_refuses_another_number_of_tokens():
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ENTITIES.decode([0, 0], OFFSETS)


def test_a_span_across_the_cut_is_not_learnt_as_if_it_ended_there():
    cut = [*OFFSETS[:3], (0, 0)]  # the text is cut behind "Du"
    assert names(ENTITIES.encode([(0, 10, "PER")], cut, complete=False)) == ["-", "-", "-", "-"]
    assert names(ENTITIES.encode([(0, 3, "PER")], cut, complete=False)) == ["-", "B-PER", "O", "-"]
    assert names(ENTITIES.encode([(19, 23, "LOC")], cut, complete=False)) == ["-", "O", "O", "-"]


def test_a_label_may_hold_a_hyphen():
    task = Task("titles", ("WORK-OF-ART", "WORK"), "token")
    spans = [(0, 10, "WORK-OF-ART"), (19, 23, "WORK")]
    assert task.decode(task.encode(spans, OFFSETS), OFFSETS) == spans


@given(st.data())
def test_any_spans_on_token_borders_survive(data: st.DataObject):
    lengths = data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 6)), min_size=1, max_size=20))
    offsets, end = [(0, 0)], 0
    for gap, length in lengths:
        offsets.append((end + gap, end + gap + length))
        end += gap + length
    offsets.append((0, 0))
    count = len(lengths)
    borders = sorted(data.draw(st.sets(st.integers(1, count + 1), max_size=8)))
    spans = [
        (offsets[first][0], offsets[behind - 1][1], data.draw(st.sampled_from(ENTITIES.labels)))
        for first, behind in pairwise(borders)
        if data.draw(st.booleans())
    ]
    codes = ENTITIES.encode(spans, offsets)
    assert codes[0] == codes[-1] == IGNORE
    assert ENTITIES.decode(codes, offsets) == spans


def check_round_trip(encoder: SentenceEncoder, texts: list[str], spans: list[list]):
    for example, wanted in zip(tokenize(texts, encoder.tokenizer, 512), spans, strict=True):
        codes = ENTITIES.encode(wanted, example["offsets"], example["complete"])
        assert example["complete"]
        assert ENTITIES.decode(codes, example["offsets"]) == wanted
        assert codes[0] == codes[-1] == IGNORE
        assert IGNORE not in [code for code, (a, b) in zip(codes, example["offsets"], strict=True) if a < b]


def test_every_sentence_of_the_corpus_comes_back(corpus, encoder):
    check_round_trip(encoder, list(corpus["text"]), list(corpus["entities"]))


def test_every_sentence_comes_back_from_byte_level_subwords(corpus, family_dirs):
    byte_level = SentenceEncoder.from_pretrained(family_dirs["roberta"])
    check_round_trip(byte_level, list(corpus["text"]), list(corpus["entities"]))


def test_a_character_of_several_tokens_comes_back(family_dirs):
    byte_level = SentenceEncoder.from_pretrained(family_dirs["roberta"])
    text = "In 東京 😀 met Zsófia's  Łódź."
    spans = [(3, 5, "LOC"), (6, 7, "ORG"), (12, 18, "PER"), (22, 26, "LOC")]
    assert [text[a:b] for a, b, _ in spans] == ["東京", "😀", "Zsófia", "Łódź"]
    check_round_trip(byte_level, [text], [spans])
