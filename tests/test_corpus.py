"""The shipped data, every way in which a file or a table can be wrong, and how rows become splits."""

import enum
import hashlib
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mtl_helpers import TASKS, CorpusError, Task, load_challenge, load_corpus, load_pairs
from mtl_helpers.corpus import assign_splits
from mtl_helpers.tables import check_table

HEAD = "text,topic,entities\n"
ANA = "Ana flew to Oslo."


@pytest.fixture
def write(tmp_path: Path):
    """Write a file of text or of bytes and give its path."""

    def to_file(content: str | bytes) -> Path:
        path = tmp_path / "mine.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def row(spans: str) -> str:
    """A file with one sentence and this cell of entities."""
    doubled = spans.replace('"', '""')
    return f'{HEAD}{ANA},sports,"{doubled}"\n'


# ----------------------------------------------------------------------------------------------- the shipped data


def test_the_corpus_is_as_documented(corpus):
    assert len(corpus) == corpus["id"].nunique() == corpus["text"].nunique() == 2970
    assert corpus["split"].value_counts().to_dict() == {"train": 2084, "test": 597, "validation": 289}
    assert set(corpus["topic"]) == set(TASKS[0].labels)
    assert set(corpus["sentence_type"]) == set(TASKS[1].labels)
    assert set(corpus["sentiment"]) == set(TASKS[2].labels)
    assert corpus["disputed"].sum() == 151
    entities = pd.Series([label for spans in corpus["entities"] for _, _, label in spans])
    assert entities.value_counts().to_dict() == {"LOC": 710, "PER": 609, "ORG": 583}


def test_a_split_is_that_part_of_the_corpus(corpus):
    test = load_corpus(split="test")
    assert list(test["id"]) == list(corpus["id"][corpus["split"] == "test"])
    assert list(test.index) == list(range(597))


def test_the_pairs_are_as_documented():
    pairs = load_pairs()
    assert list(pairs.columns) == ["id", "score", "kind", "sentence_1", "sentence_2"]
    assert pairs["score"].value_counts().to_dict() == dict.fromkeys(range(6), 40)
    assert not pairs.isna().any(axis=None)


def test_the_challenge_set_is_as_documented(corpus):
    challenge = load_challenge()
    assert len(challenge) == 420
    assert challenge.groupby("capability")["group"].nunique().to_dict() == dict.fromkeys(challenge["capability"], 20)
    assert challenge["capability"].nunique() == 10
    assert not set(challenge["text"]) & set(corpus["text"])
    labels = {task.name: task.labels for task in TASKS}
    assert all(expected in labels[task] for task, expected in challenge[["task", "expected"]].to_numpy())
    groups = challenge.groupby("group").agg({"test_type": "first", "expected": "nunique"})
    assert ((groups["expected"] == 1) == (groups["test_type"] == "invariance")).all()


# --------------------------------------------------------------------------------------------------- malformed files

MALFORMED = {  # what is wrong: (content, what the message must hold besides the file's name)
    "no text column": ("topic,sentiment\nsports,neutral\n", ["line 1", "column text", "topic, sentiment", "expected"]),
    "no task column": ("id,text\n1,Hello.\n", ["line 1", "no column for any task", "topic, sentence_type, sentiment"]),
    "misspelt task": ("text,sentimnet\nHello.,neutral\n", ["line 1", "found 'sentimnet'", "expected 'sentiment'"]),
    "misspelt text": ("Text,topic\nHello.,sports\n", ["line 1", "found 'Text'", "expected 'text'"]),
    "spaces in a name": ("text, topic\nHello.,sports\n", ["line 1", "found ' topic'", "expected 'topic'"]),
    "column twice": ("text,topic,topic\nHi.,sports,sports\n", ["line 1", "column topic", "2 times", "expected once"]),
    "unknown label": (
        "text,topic\nHi.,sports\nHi!,helth\n",
        ["line 3", "column topic", "found 'helth'", "expected one of business", "did you mean 'health'?"],
    ),
    "label in capitals": ("text,topic\nHi.,Sports\n", ["line 2", "found 'Sports'", "did you mean 'sports'?"]),
    "label like no other": ("text,topic\nHi.,42\n", ["line 2", "column topic", "found '42'", "empty cell"]),
    "unknown split": ("text,topic,split\nHi.,sports,dev\n", ["line 2", "column split", "'dev'", "validation"]),
    "empty split": ("text,topic,split\nHi.,sports,\n", ["line 2", "column split", "found ''", "train"]),
    "span behind the end": (row('[[12, 18, "LOC"]]'), ["line 2", "column entities", "[12, 18, 'LOC']", "<= 17"]),
    "span before the start": (row('[[-1, 3, "PER"]]'), ["line 2", "column entities", "[-1, 3, 'PER']", "0 <="]),
    "span of nothing": (row('[[3, 3, "PER"]]'), ["line 2", "column entities", "[3, 3, 'PER']", "start < end"]),
    "spans overlap": (
        row('[[0, 8, "PER"], [4, 11, "LOC"]]'),
        ["line 2", "column entities", "overlapping", "[0, 8, 'PER']", "[4, 11, 'LOC']"],
    ),
    "spans that are no JSON": (row("Ana=PER"), ["line 2", "column entities", "found 'Ana=PER'", "in JSON"]),
    "spans as an object": (
        row('{"PER": [0, 3]}'),
        ["line 2", "column entities", "of type dict", "expected [[start, end"],
    ),
    "one span unwrapped": (row('[0, 3, "PER"]'), ["line 2", "column entities", "found 0, ", "[start, end, label]"]),
    "position true": (row('[[true, 3, "PER"]]'), ["line 2", "column entities", "true", "whole numbers"]),
    "position 0.0": (row('[[0.0, 3, "PER"]]'), ["line 2", "column entities", "0.0", "whole numbers"]),
    "position of 5,000 digits": (row(f'[[0, {"9" * 5000}, "PER"]]'), ["line 2", "column entities", "expected"]),
    "span label a number": (row("[[0, 3, 1]]"), ["line 2", "column entities", "found [0, 3, 1], "]),
    "span label unknown": (row('[[0, 3, "PRE"]]'), ["line 2", "'PRE'", "PER, ORG, LOC", "did you mean 'PER'?"]),
    "space at a span's end": (row('[[0, 4, "PER"]]'), ["line 2", "column entities", "'Ana '", "no spaces"]),
    "brackets without end": (row("[" * 50_000), ["line 2", "column entities", "in JSON"]),
    "id twice": ("id,text,topic\na,Hi.,sports\nb,Hi.,\na,Ho.,sports\n", ["line 4", "column id", "'a'", "line 2"]),
    "id empty": ("id,text,topic\n ,Hi.,sports\n", ["line 2", "column id", "empty cell", "expected an id"]),
    "text empty": ("text,topic\nHi.,sports\n,sports\n", ["line 3", "column text", "no text"]),
    "text of white space": ('text,topic\n" \t\u3000\n",sports\n', ["line 2", "column text", "no text"]),
    "row too short": ("text,topic\nHi.,sports\nHi.\n", ["line 3", "found 1 cells", "expected 2"]),
    "row too long": ("text,topic\nOh, yes.,sports\n", ["line 2", "found 3 cells", "expected 2", "in quotes"]),
    "quote not closed": ('text,topic\nHi.,sports\n"Hello.,sports\nHi.,\n', ["line 3", "quote", "closed"]),
    "quote inside a cell": ('text,topic\n"Say "hi".",sports\n', ["line 2", "quote", "doubled"]),
    "semicolons": ("text;topic\nHello.;sports\n", ["line 1", "column text", "text;topic", "with commas"]),
    "tabs": ("text\ttopic\nHello.\tsports\n", ["line 1", "column text", "with commas"]),
    "empty file": ("", ["line 1", "empty file", "expected a header"]),
    "only empty lines": ("\n\n\r\n", ["empty file"]),
    "header only": ("text,topic\n", ["only a header", "expected at least one row"]),
    "Latin-1": ("text,topic\nHi.,sports\nCafé.,sports\n".encode("latin-1"), ["line 3", "0xe9", "expected UTF-8"]),
    "UTF-16 without a mark": ("text,topic\nHi.,sports\n".encode("utf-16-le"), ["line 1", "NUL", "expected text"]),
    "NUL byte": ("text,topic\nHi.,sports\nHe\0llo.,sports\n", ["line 3", "NUL byte", "expected text"]),
    "names like others": ("texts,topics\nHi.,sports\n", ["line 1", "expected 'text'", "expected 'topic'"]),
    "columns without names": ("text,topic,,\nHi.,sports,,\n", ["line 1", "(no name)", "2 times", "delete empty ones"]),
    "semicolons and quotes": ('"text";"topic"\n"Oh, yes.";"sports"\n', ["line 1", "with commas"]),
    "semicolons, nearly a name": ("id;sentence_type\n1;statement\n", ["1 problem", "column text", "with commas"]),
    "bars": ("text|topic\nHi.|sports\n", ["line 1", "column text", "with commas"]),
    "half a pair in a label": (row('[[0, 3, "\\ud83d"]]'), ["line 2", "column entities", "found '\\ud83d'"]),
    "invisible character": ("text,topic\nHi.,sports\u200b\n", ["found 'sports\\u200b'", "did you mean 'sports'?"]),
    "label of 10 MB": (f"text,topic\nHi.,{'x' * 10**7}\n", ["line 2", "column topic", "xxx...'", "expected one of"]),
    "name of 10 MB": (f"text,{'x' * 10**7}\nHi.,\n", ["line 1", "no column for any task"]),
    "thousands of spans": (row(json.dumps([[0, 99, "PER"]] * 5_000)), ["5000 problems", "and 4980 more"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_explained(name: str, write):
    content, fragments = MALFORMED[name]
    path = write(content)
    with pytest.raises(CorpusError) as error:
        load_corpus(path)
    message = str(error.value)
    assert [fragment for fragment in [str(path), *fragments] if fragment not in message] == [], message[:2000]
    for problem in message.splitlines()[1:21]:
        assert re.match(r"  line \d+(, column .+)?: found .*expected ", problem), problem
        assert len(problem) < 500


def same_in_a_table(name: str) -> bool:
    """Whether pd.read_csv gives the cells of a malformed file as they are, so that a table can have the same fault."""
    content, fragments = MALFORMED[name]
    spans = isinstance(content, str) and content.startswith(HEAD) and '"\n' in content
    return (spans or name.startswith("unknown label")) and "number" not in " ".join(fragments)


@pytest.mark.parametrize("name", list(filter(same_in_a_table, MALFORMED)))
def test_a_table_gets_the_words_that_a_file_gets(name: str, write):
    path = write(MALFORMED[name][0])
    texts = []
    for check in (load_corpus, lambda path: check_table(pd.read_csv(path), TASKS, "train")):
        with pytest.raises(CorpusError) as error:
            check(path)
        texts.append([problem.partition(", column ")[2] for problem in str(error.value).splitlines()])
    assert texts[0] == texts[1]


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.csv: found no such file, expected a CSV"):
        load_corpus(tmp_path / "none.csv")
    with pytest.raises(CorpusError, match="found a folder, expected a CSV"):
        load_corpus(tmp_path)


def test_the_home_folder_may_be_written_as_a_tilde(write, monkeypatch):
    monkeypatch.setenv("HOME", str(write("text,topic\nHi.,sports\n").parent))
    assert load_corpus("~/mine.csv").equals(load_corpus(Path("~/mine.csv")))


def test_unknown_splits_and_tasks_of_one_name_are_refused(write):
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, validation, test"):
        load_corpus(split="dev")
    with pytest.raises(ValueError, match="tasks named topic, topic, expected a different name for each"):
        load_corpus(tasks=[TASKS[0], TASKS[0]])


def test_all_problems_are_listed_together_in_order(write):
    lines = ["id,text,topic,entities", "a,Hi.,sprots,[]", "a,,sports,", "b,too,many,cells,here", 'c,Hi.,,"[[0, 9, 3]]"']
    with pytest.raises(CorpusError) as error:
        load_corpus(write("\n".join(lines)))
    count, *problems = str(error.value).splitlines()
    assert count.endswith("5 problems")
    places = [problem.strip().partition(": ")[0] for problem in problems]
    assert sorted(places[1:3]) == ["line 3, column id", "line 3, column text"]
    assert [places[0], *places[3:]] == ["line 2, column topic", "line 4", "line 5, column entities"]


def test_problems_of_the_header_are_listed_together(write):
    with pytest.raises(CorpusError) as error:
        load_corpus(write("Text,topic,topic,sentimnet\na,b,c,d,e\n"))
    message = str(error.value)
    assert [text for text in ["'Text'", "2 times", "'sentimnet'", "line 2"] if text not in message] == [], message


@pytest.mark.parametrize(("wrong", "rest"), [(20, None), (21, "and 1 more"), (57, "and 37 more")])
def test_more_than_twenty_problems_are_counted(wrong: int, rest: str | None, write):
    with pytest.raises(CorpusError) as error:
        load_corpus(write("text,topic\n" + "Hi.,sports\nHi.,helth\n" * wrong))
    count, *problems = str(error.value).splitlines()
    assert f"{wrong} problems" in count
    assert sum("helth" in problem for problem in problems) == 20
    assert "line 41, " in problems[19]
    assert len(problems) == 20 if rest is None else rest in problems[20]


def test_lines_are_counted_as_an_editor_counts_them(write):
    content = 'text,topic\n"One\ntwo\r\nthree",sports\n\nFour.,helth\n"Five\nsix",helth\n'
    with pytest.raises(CorpusError) as error:
        load_corpus(write(content))
    assert "line 6, column topic" in str(error.value)
    assert "line 7, column topic" in str(error.value)


# ------------------------------------------------------------------------------------------------ well-formed files

SPANS = '"[[9, 13, ""LOC""], [2, 5, ""PER""]]"'
WELL_FORMED = {  # (content, columns that come of it)
    "missing labels and no spans": (
        "text,topic,entities\nA,sports,[]\nB,,\nC, ,null\n",
        {"topic": ["sports", None, None], "entities": [[], None, None], "id": ["row1", "row2", "row3"]},
    ),
    "words that pandas takes for missing": (
        "id,text,topic,source\nNA,nan,sports,null\nNone,NULL,sports,\n",
        {"id": ["NA", "None"], "text": ["nan", "NULL"], "source": ["null", ""]},
    ),
    "spans in any order": (
        f"text,entities\n😀 Ana in Łódź,{SPANS}\n",
        {"entities": [[(2, 5, "PER"), (9, 13, "LOC")]], "text": ["😀 Ana in Łódź"]},
    ),
    "spans that touch": (
        'text,entities\nOsloAna,"[[0, 4, ""LOC""], [4, 7, ""PER""]]"\n',
        {"entities": [[(0, 4, "LOC"), (4, 7, "PER")]]},
    ),
    "a column without a name": (",text,topic\n0,Hi.,sports\n", {"": ["0"], "topic": ["sports"]}),
    "names like id": ("idx,ids,text,topic\n7,8,Hi.,sports\n", {"id": ["row1"], "idx": ["7"], "ids": ["8"]}),
    "a task without labels": ("text,topic,sentiment\nHi.,sports,\n", {"sentiment": [None], "split": ["train"]}),
    "a text of 10 MB": (f"text,topic\n{'long ' * 2_000_000},sports\n", {"text": ["long " * 2_000_000]}),
    "marks, joiners, separators": (
        "text,topic\ne\u0301 \u200d\u2028 \ufeff\x85\x0b,sports\n",
        {"text": ["e\u0301 \u200d\u2028 \ufeff\x85\x0b"]},
    ),
}


@pytest.mark.filterwarnings("ignore:.*has no row of")
@pytest.mark.parametrize("name", WELL_FORMED)
def test_a_well_formed_file_is_read(name: str, write):
    content, columns = WELL_FORMED[name]
    frame = load_corpus(write(content))
    assert {column: frame[column].tolist() for column in columns} == columns
    assert set(frame["split"]) <= {"train", "validation", "test"}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_of_any_system_are_read(encoding: str, newline: str, write):
    content = newline.join(["text,topic,entities", '"Zsófia met ""Łódź""",health,"[[0, 6, ""PER""]]"', ""])
    frame = load_corpus(write(content.encode(encoding)))
    assert frame.loc[0, ["text", "topic", "entities"]].tolist() == ['Zsófia met "Łódź"', "health", [(0, 6, "PER")]]


def test_some_tasks_and_other_columns(write):
    frame = load_corpus(write("sentiment,source,text\nneutral,mail,A.\npositive,web,B.\n"))
    assert list(frame.columns) == ["id", "sentiment", "source", "text", "split"]
    assert frame["source"].tolist() == ["mail", "web"]


def test_own_tasks(write):
    tasks = [Task("stars", ("1", "2", "3")), Task("dishes", ("FOOD",), level="token")]
    path = write('text,stars,dishes\nGood soup.,3,"[[5, 9, ""FOOD""]]"\n')
    assert load_corpus(path, tasks=tasks).loc[0, ["stars", "dishes"]].tolist() == ["3", [(5, 9, "FOOD")]]
    with pytest.raises(CorpusError, match="no column for any task, expected one of topic"):
        load_corpus(path)
    with pytest.raises(CorpusError, match="line 2, column stars: found '4'"):
        load_corpus(write("text,stars\nBad soup.,4\n"), tasks=tasks)


def test_any_column_can_be_a_task():
    """Also `disputed`, which holds truth values where it is no task."""
    frame = load_corpus(split="validation", tasks=[Task("disputed", ("0", "1"))])
    assert set(frame["disputed"]) == {"0", "1"}
    assert load_corpus(split="validation")["disputed"].dtype == bool


# ----------------------------------------------------------------------------------------------------------- tables


class Label(str, enum.Enum):  # noqa: UP042 (StrEnum would be turned into text in another way)
    SPORTS = "sports"


def objects(*cells: object) -> pd.Series:
    """A column of these very objects."""
    array = np.empty(len(cells), dtype=object)
    for i, cell in enumerate(cells):
        array[i] = cell
    return pd.Series(array, dtype=object)


GOOD = {  # (column, cells, what they become)
    "missing": ("topic", objects("sports", None, pd.NA, float("nan"), pd.NaT, "", " \xa0"), ["sports"] + [None] * 6),
    "categories": ("topic", pd.Series(["sports", None], dtype="category"), ["sports", None]),
    "pandas' text": ("topic", pd.Series(["sports", None], dtype="string"), ["sports", None]),
    "Arrow": ("topic", pd.Series(["sports", None]).convert_dtypes(dtype_backend="pyarrow"), ["sports", None]),
    "NumPy's text": ("topic", objects(np.str_("sports")), ["sports"]),
    "an enumeration": ("topic", objects(Label.SPORTS), ["sports"]),
    "nothing": ("topic", [None, None], [None, None]),
    "lists": ("entities", objects([[12, 16, "LOC"], [0, 3, "PER"]]), [[(0, 3, "PER"), (12, 16, "LOC")]]),
    "tuples": ("entities", objects(((0, 3, "PER"),), ()), [[(0, 3, "PER")], []]),
    "NumPy's numbers": ("entities", objects([(np.int64(0), np.uint8(3), np.str_("PER"))]), [[(0, 3, "PER")]]),
    "an array": ("entities", objects(np.array([[0, 3, "PER"]], dtype=object), np.array([])), [[(0, 3, "PER")], []]),
    "JSON": ("entities", ['[[0, 3, "PER"]]', "[]", "", "null"], [[(0, 3, "PER")], [], None, None]),
    "no spans and missing": ("entities", objects([], None, float("nan"), pd.NA), [[], None, None, None]),
}


@pytest.mark.parametrize("name", GOOD)
def test_cells_get_one_form(name: str):
    column, cells, expected = GOOD[name]
    checked = check_table(pd.DataFrame({"text": [ANA] * len(expected), column: cells}), TASKS)
    assert checked[column].tolist() == expected
    for cell in checked[column]:
        assert (
            all(type(value) in (int, str) for span in cell for value in span)
            if column == "entities" and cell
            else (type(cell) in (str, list, type(None)))
        )


BAD = {  # (columns, what the message must hold)
    "labels that are numbers": (
        {"topic": [1, 2.5]},
        ["row 0, column topic: found 1.0 of type float, expected text, one of business", "dtype=str"],
    ),
    "mixed labels": ({"topic": objects(1, "2", True)}, ["1 of type int", "found '2', expected", "True of type bool"]),
    "a list of labels": ({"topic": objects(["sports"])}, ["found ['sports'] of type list, expected text"]),
    "no text": ({"text": ["", None, "\u2003\n"]}, ["row 0, column text: found no text", "row 1, ", "row 2, "]),
    "texts that are none": ({"text": objects(7, ["a"], b"a")}, ["7 of type int, expected text", "list", "bytes"]),
    "half a pair": (
        {"text": objects("half \ud83d")},
        ["half a surrogate pair at character 5", "expected valid Unicode"],
    ),
    "dicts": (
        {"entities": objects([{"start": 0, "end": 3, "label": "PER"}])},
        ["found {'start': 0, 'end': 3, 'label': 'PER'}, expected [start, end, label]"],
    ),
    "spans of predict": ({"entities": objects([(0, 3, "PER", "Ana")])}, ["found (0, 3, 'PER', 'Ana'), expected"]),
    "an array of texts": ({"entities": objects(np.array([[0, 3, "PER"]]))}, ["['0', '3', 'PER'], expected [start, "]),
    "truth as place": ({"entities": objects([(False, 3, "PER")])}, ["found (False, 3, 'PER'), expected", "whole"]),
    "ids": ({"topic": ["a", "b"], "id": ["s1", 7]}, ["row 0 (id 's1'), column topic", "row 1 (id 7), column topic"]),
    "capitals": ({"Topic": ["sports"]}, ["column Topic: found 'Topic', expected 'topic'; rename the column"]),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_table_is_explained(name: str):
    columns, fragments = BAD[name]
    table = pd.DataFrame({"text": [ANA] * len(next(iter(columns.values()))), **columns})
    with pytest.raises(CorpusError, match=r"^validation: \d+ problem") as error:
        check_table(table, TASKS, "validation")
    assert [fragment for fragment in fragments if fragment not in str(error.value)] == [], str(error.value)


NO_TABLES = {
    "a list": ([ANA], "found .* of type list, expected a pandas DataFrame; load_corpus"),
    "a path": ("mine.csv", "found 'mine.csv' of type str, expected a pandas DataFrame; load_corpus"),
    "a series": (pd.Series([ANA]), "of type Series, expected a pandas DataFrame"),
    "nothing": (None, "found None of type NoneType, expected a pandas DataFrame"),
    "no column text": (pd.DataFrame({"sentence": [ANA]}), "found 1 rows with the columns sentence, expected .* text"),
    "no row": (pd.DataFrame({"text": []}), "found 0 rows"),
    "columns twice": (pd.DataFrame([[ANA, "a", "b"]], columns=["text", "topic", "topic"]), "topic: found 2 times"),
    "columns in two storeys": (pd.DataFrame({("text", "a"): [ANA]}), "found 1 rows with the columns"),
}


@pytest.mark.parametrize("name", NO_TABLES)
def test_what_is_no_table_is_refused(name: str):
    table, message = NO_TABLES[name]
    with pytest.raises(CorpusError, match=f"(?s)^train: .*{message}") as error:
        check_table(table, TASKS, "train")
    assert len(str(error.value)) < 500


def test_the_index_and_other_columns_stay_and_the_table_is_copied():
    table = pd.DataFrame({"text": ["A", "B", "C"], "topic": ["sports ", "", None], 5: [1, 2, 3]}, index=[7, 7, 2])
    before = table.copy()
    with pytest.warns(UserWarning, match="'sports ' \\(topic, 1 times\\)"):
        checked = check_table(table, TASKS)
    pd.testing.assert_frame_equal(table, before)
    assert checked.index.tolist() == [7, 7, 2] and checked[5].tolist() == [1, 2, 3]
    assert checked["topic"].tolist() == ["sports", None, None]
    assert check_table(checked, TASKS).equals(checked)


@pytest.mark.filterwarnings("ignore:.*has no row of")
def test_labels_that_differ_in_white_space_alone_are_taken_with_one_warning(write):
    task = Task("mood", ("very good", "bad"))
    spelt = ["very good", " very good", "very  good", "very\xa0good", "bad\u3000", "bad\t"]
    path = write("text,mood,entities\n" + "".join(f"Ana {i},{mood},\n" for i, mood in enumerate(spelt)))
    for read in (load_corpus, lambda path, tasks: check_table(pd.read_csv(path), tasks)):
        with pytest.warns(UserWarning, match="in white space alone and are taken for them") as warned:
            frame = read(path, tasks=[task])
        assert frame["mood"].tolist() == ["very good"] * 4 + ["bad"] * 2
        (warning,) = [str(warning.message) for warning in warned if "white space" in str(warning.message)]
        assert all(repr(mood) in warning for mood in spelt[1:]) and repr(spelt[0]) not in warning
    with pytest.warns(UserWarning, match="'PER ' \\(entities, 1 times\\)"):
        frame = load_corpus(write(row('[[0, 3, "PER "]]')))
    assert frame["entities"].tolist() == [[(0, 3, "PER")]]


@pytest.mark.filterwarnings("ignore:.*has no row of")
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0")), min_size=1, max_size=5),
    random=st.randoms(use_true_random=False),
)
def test_any_text_comes_back_from_a_file_as_it_is_in_a_table(texts: list[str], random, tmp_path_factory):
    texts = [text + "." for text in texts]
    spans = [[(len(text) - 1, len(text), "ORG")] if random.random() < 0.7 else None for text in texts]
    topics = [random.choice([None, "health"]) for _ in texts]
    table = pd.DataFrame({"text": texts, "topic": topics, "entities": pd.Series(spans, dtype=object)})
    path = tmp_path_factory.getbasetemp() / "any.csv"
    table.assign(entities=[json.dumps(cell) for cell in spans]).to_csv(path, index=False)
    columns = list(table)
    assert load_corpus(path, tasks=TASKS)[columns].to_dict("list") == check_table(table, TASKS)[columns].to_dict("list")


# --------------------------------------------------------------------------------------------------- own splits


def without_split(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write a table without its splits, and load it; nothing is warned of."""
    spans = [json.dumps(spans) for spans in frame["entities"]]
    frame.assign(entities=spans).drop(columns=["split", "disputed"]).to_csv(path, index=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_corpus(path)


def test_splits_are_reproducible_and_do_not_hang_on_the_order_of_rows(corpus, tmp_path):
    first = without_split(corpus, tmp_path / "a.csv")
    again = without_split(corpus, tmp_path / "a.csv")
    shuffled = without_split(corpus.sample(frac=1, random_state=0), tmp_path / "b.csv")
    assert first["split"].tolist() == again["split"].tolist()
    assert shuffled.set_index("id")["split"].loc[first["id"]].tolist() == first["split"].tolist()


def test_splits_are_70_10_20_of_everything_and_of_each_label(corpus, tmp_path):
    frame = without_split(corpus, tmp_path / "a.csv")
    wanted = {"train": 0.7, "validation": 0.1, "test": 0.2}
    shares = frame["split"].value_counts(normalize=True)
    assert shares.to_dict() == pytest.approx(wanted, abs=0.002)
    for task in ("topic", "sentence_type", "sentiment"):
        for _, group in frame.groupby(task):
            assert group["split"].value_counts(normalize=True).to_dict() == pytest.approx(wanted, abs=0.02)
    some = frame["entities"].map(bool).groupby(frame["split"]).mean()
    assert some.max() - some.min() < 0.03


def test_a_split_can_be_asked_of_a_file_without_splits(corpus, tmp_path):
    frame = without_split(corpus, tmp_path / "a.csv")
    test = load_corpus(tmp_path / "a.csv", split="test")
    assert test["id"].tolist() == frame["id"][frame["split"] == "test"].tolist()


labelled = st.tuples(st.sampled_from("abcdefgh"), st.sampled_from(["sports", "health", ""]))


@pytest.mark.filterwarnings("ignore:.*has no row of")
@given(rows=st.lists(labelled, min_size=1, max_size=30), random=st.randoms(use_true_random=False))
def test_equal_texts_stay_together_in_any_order_of_rows(rows, random, tmp_path_factory):
    """Also when a text occurs with different labels, as it does where data sets are put together."""

    def splits(rows: list) -> dict[str, set[str]]:
        path = tmp_path_factory.getbasetemp() / "splits.csv"
        path.write_text("text,topic\n" + "".join(f"{text},{topic}\n" for text, topic in rows))
        return {text: set(group) for text, group in load_corpus(path).groupby("text")["split"]}

    first = splits(rows)
    assert all(len(split) == 1 for split in first.values())
    assert splits(random.sample(rows, len(rows))) == first


@pytest.mark.parametrize("common", range(30, 40))
def test_train_gets_a_row_of_every_class_and_what_the_others_lack_is_named(common: int, write):
    """Rows of two common classes, and one of each rare one, dealt to other splits as their number changes."""
    rows = [f'Ana {i},{("sports", "health")[i % 2]},"[[0, 3, ""PER""]]"' for i in range(common)]
    rare = ["IBM here,business,", "Oslo 1,politics,[]", 'Oslo 2,sports,"[[0, 4, ""LOC""]]"', 'IBM,,"[[0, 3, ""ORG""]]"']
    with pytest.warns(UserWarning, match="has no row of") as warned:
        frame = load_corpus(write("\n".join(["text,topic,entities", *rows, *rare]) + "\n"))
    train = frame[frame["split"] == "train"]
    assert set(train["topic"].dropna()) == {"sports", "health", "business", "politics"}
    assert {label for spans in train["entities"].dropna() for _, _, label in spans} == {"PER", "ORG", "LOC"}
    (warning,) = [str(warning.message) for warning in warned]
    for split in ("validation", "test"):
        assert f"{split} has no row of LOC (entities), ORG (entities), business (topic), politics (topic)" in warning
    assert "train has" not in warning
    assert [warning.filename for warning in warned] == [__file__]


@example(kinds=list("ABAAAAABA"))  # B twice, and never dealt to train
@given(kinds=st.lists(st.sampled_from(["A", "B", "C", "D", "E", "AB", "", None]), min_size=1, max_size=40))
def test_only_rows_that_train_needs_are_taken_from_where_they_were_dealt(kinds: list[str | None]):
    """At most one row moves for each class that the dealing left out, and none where it left out none."""
    task = Task("spans", tuple("ABCDE"), "token")
    spans = [None if kind is None else [(i, i + 1, label) for i, label in enumerate(kind)] for kind in kinds]
    frame = pd.DataFrame({"text": [f"Text {i}" for i in range(len(kinds))], "spans": pd.Series(spans, dtype=object)})
    keys = [(repr([bool(cell)]), hashlib.sha256(text.encode()).hexdigest()) for text, cell in frame.to_numpy()]
    turns = ["train", "test", "train", "train", "validation", "train", "train", "test", "train", "train"]
    dealt = [turns[sorted(keys).index(key) % 10] for key in keys]
    splits = assign_splits(frame, [task])

    def trained(splits: list[str]) -> set[str]:
        return {label for kind, split in zip(kinds, splits, strict=True) if split == "train" for label in kind or ""}

    moved = [(old, new) for old, new in zip(dealt, splits, strict=True) if old != new]
    assert trained(splits) == {label for kind in kinds for label in kind or ""}
    assert len(moved) <= len(trained(splits) - trained(dealt)) and all(new == "train" for _, new in moved)


def test_given_splits_are_kept_and_a_class_without_a_training_row_is_named(write):
    content = "text,topic,split\nA,sports,train\nB,health,test\nC,sports,validation\nD,,test\n"
    with pytest.warns(UserWarning, match=r"train has no row of health \(topic\)"):
        frame = load_corpus(write(content))
    assert frame["split"].tolist() == ["train", "test", "validation", "test"]


@pytest.mark.parametrize(
    "content",
    [
        "text,topic,split\nA,sports,test\nB,health,test\n",  # a file to score a model on
        "text,topic,split\nA,sports,train\nB,health,train\nC,sports,test\n",  # test lacks one: the user's choice
        "text,topic\nA,sports\n",
    ],
    ids=["test only", "all in train", "one row"],
)
def test_nothing_is_warned_of_where_train_has_all_classes_or_nothing(content: str, write):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_corpus(write(content))
