"""Labels become class indices and class indices labels, without loss."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtl_helpers import TASKS, Task
from mtl_helpers.tasks import IGNORE, trim_offsets

ENTITIES = TASKS[3]
#        [CLS]   Ana     Du      ##arte   flew      to        Oslo      .         [SEP]
OFFSETS = [(0, 0), (0, 3), (4, 6), (6, 10), (11, 15), (16, 18), (19, 23), (23, 24), (0, 0)]


def names(codes: list[int]) -> list[str]:
    return ["-" if code == IGNORE else ENTITIES.classes[code] for code in codes]


REFUSED = {  # what the message says: arguments
    "level is 'word', expected 'sentence' or 'token'": ("topic", ("a", "b"), "word"),
    "task name ''": ("", ("a", "b")),
    "task name 'my task'": ("my task", ("a", "b")),
    "task name 'text': expected a Python identifier other than id, text, split": ("text", ("a", "b")),
    "task name 'id'": ("id", ("a", "b")),
    "task name 'split'": ("split", ("a", "b")),
    "task name 7": (7, ("a", "b")),
    "2 or more different labels, found ()": ("topic", ()),
    "2 or more different labels, found ('a', 'a')": ("topic", ("a", "a")),
    "1 or more different labels": ("spans", (), "token"),
    "label '' of type str, expected a non-empty string": ("topic", ("a", "")),
    "label 1 of type int, expected a non-empty string without spaces at its ends; numbers are": ("stars", (1, 2)),
    "label 'b ' of type str": ("topic", ("a", "b ")),
    "labels is {'a'}, expected a tuple": ("spans", {"a"}, "token"),
    "expected a tuple of labels": ("topic", {"a": 1, "b": 2}),
    "labels is 'ab', expected a tuple": ("topic", "ab"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_task_that_makes_no_sense_is_refused(message: str):
    with pytest.raises(ValueError, match=re.escape(message)):
        Task(*REFUSED[message])


def test_classes():
    assert [len(task.classes) for task in TASKS] == [6, 3, 3, 7]
    assert ENTITIES.classes == ("O", "B-PER", "I-PER", "B-ORG", "I-ORG", "B-LOC", "I-LOC")
    assert Task("aspect", ["food", "staff"]).classes == ("food", "staff")
    assert Task("spans", ["X"], "token").classes == ("O", "B-X", "I-X")
    assert hash(Task("aspect", ["food", "staff"])) == hash(Task("aspect", ("food", "staff")))


def test_index_knows_its_classes_and_no_others():
    assert [TASKS[2].index(label) for label in TASKS[2].labels] == [0, 1, 2]
    assert ENTITIES.index("I-PER") == 2
    with pytest.raises(ValueError, match="'sentiment' has no label 'good', expected one of negative, neutral"):
        TASKS[2].encode("good", OFFSETS)
    with pytest.raises(ValueError, match="'entities' has no label 'PER'"):
        ENTITIES.index("PER")
    with pytest.raises(ValueError, match="DATE"):
        ENTITIES.encode([(0, 3, "DATE")], OFFSETS)


@pytest.mark.parametrize(
    ("spans", "bio"),
    [
        ([(0, 10, "PER"), (19, 23, "LOC")], "- B-PER I-PER I-PER O O B-LOC O -"),
        ([(0, 3, "PER"), (4, 10, "PER")], "- B-PER B-PER I-PER O O O O -"),
        ([(6, 10, "ORG")], "- O O B-ORG O O O O -"),
        ([(5, 17, "ORG")], "- O B-ORG I-ORG I-ORG I-ORG O O -"),  # from within one token to within another
        ([], "- O O O O O O O -"),
        (None, "- - - - - - - - -"),
    ],
)
def test_spans_become_bio_classes_and_special_tokens_are_ignored(spans: list | None, bio: str):
    assert " ".join(names(ENTITIES.encode(spans, OFFSETS))) == bio


def test_a_missing_label_is_ignored():
    assert TASKS[0].encode(None, OFFSETS) == IGNORE == -100
    assert ENTITIES.encode([], []) == ENTITIES.decode([], []) == []


@pytest.mark.parametrize(
    ("bio", "spans"),
    [
        ("I-PER", [(0, 1, "PER")]),
        ("O I-PER I-PER", [(1, 3, "PER")]),
        ("B-PER I-LOC", [(0, 1, "PER"), (1, 2, "LOC")]),
        ("B-PER O I-PER", [(0, 1, "PER"), (2, 3, "PER")]),
        ("I-PER B-PER I-PER", [(0, 1, "PER"), (1, 3, "PER")]),
        ("O O", []),
    ],
)
def test_malformed_bio_is_read_like_the_conll_script_does(bio: str, spans: list):
    codes = [ENTITIES.index(name) for name in bio.split()]
    assert ENTITIES.decode(codes, [(i, i + 1) for i in range(len(codes))]) == spans


def test_decode_passes_over_special_tokens_and_what_is_ignored():
    codes = [ENTITIES.index("B-LOC"), ENTITIES.index("B-PER"), IGNORE, ENTITIES.index("I-PER"), ENTITIES.index("I-PER")]
    assert ENTITIES.decode(codes, [(0, 0), (0, 3), (4, 6), (6, 10), (0, 0)]) == [(0, 3, "PER"), (6, 10, "PER")]
    codes = [ENTITIES.index("B-PER"), 0, ENTITIES.index("I-PER")]  # a token of white space lies between two of a name
    assert ENTITIES.decode(codes, [(0, 3), (4, 4), (4, 6)]) == [(0, 6, "PER")]
    codes = [ENTITIES.index(name) for name in ("B-LOC", "B-LOC", "I-PER", "O", "I-LOC", "B-ORG")]
    shared = [*[(0, 1)] * 4, (1, 2), (2, 3)]  # four tokens of one character: the first decides
    assert ENTITIES.decode(codes, shared) == [(0, 2, "LOC"), (2, 3, "ORG")]
    with pytest.raises(ValueError, match="argument 2 is longer"):
        ENTITIES.decode([0, 0], OFFSETS)


def test_a_span_across_the_cut_is_not_learnt_as_if_it_ended_there():
    cut = [*OFFSETS[:3], (0, 0)]  # the text is cut behind "Du"
    assert names(ENTITIES.encode([(0, 10, "PER")], cut, complete=False)) == ["-", "-", "-", "-"]
    assert names(ENTITIES.encode([(0, 3, "PER")], cut, complete=False)) == ["-", "B-PER", "O", "-"]
    assert names(ENTITIES.encode([(4, 6, "PER")], cut, complete=False)) == ["-", "O", "B-PER", "-"]
    assert names(ENTITIES.encode([(19, 23, "LOC")], cut, complete=False)) == ["-", "O", "O", "-"]
    assert names(ENTITIES.encode([(0, 10, "PER")], cut)) == ["-", "B-PER", "I-PER", "-"]


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
    borders = sorted(data.draw(st.sets(st.integers(1, len(lengths) + 1), max_size=8)))
    spans = [
        (offsets[first][0], offsets[behind - 1][1], data.draw(st.sampled_from(ENTITIES.labels)))
        for first, behind in pairwise(borders)
        if data.draw(st.booleans())
    ]
    codes = ENTITIES.encode(spans, offsets)
    assert codes[0] == codes[-1] == IGNORE
    assert ENTITIES.decode(codes, offsets) == spans


# ------------------------------------------------------------------------------------------ what belongs to a token

TRIMMED = {  # text: (offsets as a tokenizer gives them, as a reader sees them)
    "In Ivo": ([(0, 0), (0, 2), (2, 6), (0, 0)], [(0, 0), (0, 2), (3, 6), (0, 0)]),
    "a \t\u3000b\xa0": ([(0, 1), (1, 4), (4, 6)], [(0, 1), (4, 4), (4, 5)]),
    "Rene\u0301 x": ([(0, 4), (6, 7)], [(0, 5), (6, 7)]),
    "Rene\u0301\u0300": ([(0, 2), (2, 4)], [(0, 2), (2, 6)]),
    "e\u0301e": ([(0, 1), (1, 2), (2, 3)], [(0, 1), (1, 2), (2, 3)]),  # the accent is a token of its own
    "a\u00adb": ([(0, 1), (2, 3)], [(0, 2), (2, 3)]),
    "❤\ufe0f!": ([(0, 1), (2, 3)], [(0, 2), (2, 3)]),
    "का": ([(0, 1)], [(0, 2)]),
    "7\u20e3": ([(0, 1)], [(0, 2)]),
    "x \u0301": ([(0, 2)], [(0, 1)]),  # a mark on a space is nobody's
    "é, é": ([(0, 1), (3, 4)], [(0, 1), (3, 4)]),  # punctuation that no token covers stays outside
    "\u0301a": ([(0, 0), (1, 2)], [(0, 0), (1, 2)]),
    "": ([(0, 0)], [(0, 0)]),
}


@pytest.mark.parametrize("text", TRIMMED, ids=ascii)
def test_offsets_are_those_of_a_reader(text: str):
    offsets, expected = TRIMMED[text]
    assert trim_offsets(text, offsets) == expected
