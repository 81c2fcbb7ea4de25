"""The shipped data, every way in which a user's CSV can be wrong, and the way from a table to batches."""

import json
import warnings
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mtl_helpers import TASKS, CorpusError, Task, load_challenge, load_corpus, load_pairs
from mtl_helpers.corpus import collate, length_batches, make_examples, progress, tokenize
from mtl_helpers.tasks import IGNORE

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
    """A table with one sentence and this cell of entities."""
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


# --------------------------------------------------------------------------------------------------- malformed CSVs

MALFORMED = {  # what is wrong: (content, what the message must hold besides the file's name)
    "no text column": ("topic,sentiment\nsports,neutral\n", ["line 1", "column text", "topic, sentiment", "expected"]),
    "no task column": ("id,text\n1,Hello.\n", ["line 1", "no column for any task", "topic, sentence_type, sentiment"]),
    "misspelt task": ("text,sentimnet\nHello.,neutral\n", ["line 1", "found 'sentimnet'", "expected 'sentiment'"]),
    "misspelt text": ("Text,topic\nHello.,sports\n", ["line 1", "found 'Text'", "expected 'text'"]),
    "spaces in a name": ("text, topic\nHello.,sports\n", ["line 1", "found ' topic'", "expected 'topic'"]),
    "column twice": ("text,topic,topic\nHi.,sports,sports\n", ["line 1", "column topic", "2 times", "expected once"]),
    "text column twice": ("text,text,topic\nHi.,Hi.,sports\n", ["line 1", "column text", "found 2 times"]),
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
    "span backwards": (row('[[3, 0, "PER"]]'), ["line 2", "column entities", "[3, 0, 'PER']", "start < end"]),
    "spans overlap": (
        row('[[0, 8, "PER"], [4, 11, "LOC"]]'),
        ["line 2", "column entities", "overlapping", "[0, 8, 'PER']", "[4, 11, 'LOC']"],
    ),
    "one span inside another": (row('[[4, 8, "LOC"], [0, 16, "PER"]]'), ["line 2", "overlapping", "[0, 16, 'PER']"]),
    "the same span twice": (row('[[0, 3, "PER"], [0, 3, "PER"]]'), ["line 2", "column entities", "overlapping"]),
    "spans that are no JSON": (row("Ana=PER"), ["line 2", "column entities", "found 'Ana=PER'", "in JSON"]),
    "spans in Python's notation": (row("[(0, 3, 'PER')]"), ["line 2", "column entities", "in JSON"]),
    "spans as an object": (row('{"PER": [0, 3]}'), ["line 2", "column entities", "expected [[start, end"]),
    "one span unwrapped": (row('[0, 3, "PER"]'), ["line 2", "column entities", "found '0'", "[start, end, label]"]),
    "span too short": (row("[[0, 3]]"), ["line 2", "column entities", "found '[0, 3]'", "[start, end, label]"]),
    "position true": (row('[[true, 3, "PER"]]'), ["line 2", "column entities", "true", "whole numbers"]),
    "position 0.0": (row('[[0.0, 3, "PER"]]'), ["line 2", "column entities", "0.0", "whole numbers"]),
    "position in quotes": (row('[["0", 3, "PER"]]'), ["line 2", "column entities", '"0"', "whole numbers"]),
    "position null": (row('[[null, 3, "PER"]]'), ["line 2", "column entities", "null", "whole numbers"]),
    "position NaN": (row('[[NaN, 3, "PER"]]'), ["line 2", "column entities", "NaN", "whole numbers"]),
    "position of 5,000 digits": (row(f'[[0, {"9" * 5000}, "PER"]]'), ["line 2", "column entities", "expected"]),
    "span label a number": (row("[[0, 3, 1]]"), ["line 2", "column entities", "found '[0, 3, 1]'"]),
    "span label unknown": (row('[[0, 3, "PRE"]]'), ["line 2", "'PRE'", "PER, ORG, LOC", "did you mean 'PER'?"]),
    "span label in BIO": (row('[[0, 3, "B-PER"]]'), ["line 2", "column entities", "found 'B-PER'"]),
    "space at a span's end": (row('[[0, 4, "PER"]]'), ["line 2", "column entities", "'Ana '", "no spaces"]),
    "space at a span's start": (row('[[3, 8, "PER"]]'), ["line 2", "column entities", "' flew'", "no spaces"]),
    "span of a space": (row('[[3, 4, "PER"]]'), ["line 2", "column entities", "' '", "no spaces"]),
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
    "only a byte order mark": (b"\xef\xbb\xbf", ["line 1", "empty file"]),
    "only empty lines": ("\n\n\r\n", ["empty file"]),
    "header only": ("text,topic\n", ["only a header", "expected at least one row"]),
    "header only, no newline": ("text,topic", ["only a header", "expected at least one row"]),
    "Latin-1": ("text,topic\nHi.,sports\nCafé.,sports\n".encode("latin-1"), ["line 3", "0xe9", "expected UTF-8"]),
    "UTF-16": ("text,topic\nHi.,sports\n".encode("utf-16"), ["line 1", "0xff", "expected UTF-8"]),
    "UTF-16 without a mark": ("text,topic\nHi.,sports\n".encode("utf-16-le"), ["line 1", "NUL", "expected text"]),
    "NUL byte": ("text,topic\nHi.,sports\nHe\0llo.,sports\n", ["line 3", "NUL byte", "expected text"]),
    "a spreadsheet": (b"PK\x03\x04\x14\x00\x06\x00\x08\x00\xff\xfe\x9c", ["line 1", "expected"]),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_file_is_explained(name: str, write):
    content, fragments = MALFORMED[name]
    path = write(content)
    with pytest.raises(CorpusError) as error:
        load_corpus(path)
    message = str(error.value)
    assert [part for part in [str(path), *fragments] if part not in message] == [], message


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(CorpusError, match=r"none\.csv: found no such file, expected a CSV"):
        load_corpus(tmp_path / "none.csv")
    with pytest.raises(CorpusError, match="found a folder, expected a CSV"):
        load_corpus(tmp_path)


def test_an_unknown_split_is_refused():
    with pytest.raises(ValueError, match="split is 'dev', expected one of train, validation, test"):
        load_corpus(split="dev")


def test_all_problems_are_listed_together_in_order(write):
    lines = ["id,text,topic,entities", "a,Hi.,sprots,[]", "a,,sports,", "b,too,many,cells,here", 'c,Hi.,,"[[0, 9, 3]]"']
    with pytest.raises(CorpusError) as error:
        load_corpus(write("\n".join(lines)))
    count, *problems = str(error.value).splitlines()
    assert count.endswith("5 problems")
    found = [problem.strip().partition(": ")[0] for problem in problems]
    assert sorted(found[1:3]) == ["line 3, column id", "line 3, column text"]
    assert [found[0], *found[3:]] == ["line 2, column topic", "line 4", "line 5, column entities"]


def test_problems_of_the_header_are_listed_together(write):
    with pytest.raises(CorpusError) as error:
        load_corpus(write("Text,topic,topic,sentimnet\na,b,c,d,e\n"))
    message = str(error.value)
    assert [part for part in ["'Text'", "2 times", "'sentimnet'", "line 2"] if part not in message] == [], message


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


# ------------------------------------------------------------------------------------------------ well-formed CSVs


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_byte_order_marks_and_line_ends_of_any_system_are_read(encoding: str, newline: str, write):
    content = newline.join(["text,topic,entities", 'Zsófia met "Łódź",health,"[[0, 6, ""PER""]]"', ""])
    frame = load_corpus(write(content.replace('Zsófia met "Łódź"', '"Zsófia met ""Łódź"""').encode(encoding)))
    assert frame["text"].tolist() == ['Zsófia met "Łódź"']
    assert frame["topic"].tolist() == ["health"]
    assert frame["entities"].tolist() == [[(0, 6, "PER")]]


def test_missing_labels_are_none_and_no_spans_are_an_empty_list(write):
    frame = load_corpus(write("text,topic,entities\nA,sports,[]\nB,,\nC, ,\n"))
    assert frame["topic"].tolist() == ["sports", None, None]
    assert frame["entities"].tolist() == [[], None, None]
    assert frame["id"].nunique() == 3


def test_words_that_pandas_takes_for_missing_are_words(write):
    frame = load_corpus(write("id,text,topic,source\nNA,nan,sports,null\nNone,NULL,sports,\n"))
    assert frame["id"].tolist() == ["NA", "None"]
    assert frame["text"].tolist() == ["nan", "NULL"]
    assert frame["source"].tolist() == ["null", ""]


def test_some_tasks_and_other_columns(write):
    frame = load_corpus(write("sentiment,source,text\nneutral,mail,A.\npositive,web,B.\n"))
    assert list(frame.columns) == ["id", "sentiment", "source", "text", "split"]
    assert frame["source"].tolist() == ["mail", "web"]


def test_spans_are_sorted_and_counted_in_characters(write):
    frame = load_corpus(write('text,entities\n😀 Ana in Łódź,"[[9, 13, ""LOC""], [2, 5, ""PER""]]"\n'))
    (spans,), (text,) = frame["entities"], frame["text"]
    assert [(text[a:b], label) for a, b, label in spans] == [("Ana", "PER"), ("Łódź", "LOC")]


def test_spans_may_touch(write):
    frame = load_corpus(write('text,entities\nOsloAna,"[[0, 4, ""LOC""], [4, 7, ""PER""]]"\n'))
    assert frame["entities"].tolist() == [[(0, 4, "LOC"), (4, 7, "PER")]]


def test_own_tasks(write):
    tasks = [Task("stars", ("1", "2", "3")), Task("dishes", ("FOOD",), level="token")]
    path = write('text,stars,dishes\nGood soup.,3,"[[5, 9, ""FOOD""]]"\n')
    assert load_corpus(path, tasks=tasks).loc[0, ["stars", "dishes"]].tolist() == ["3", [(5, 9, "FOOD")]]
    with pytest.raises(CorpusError, match="no column for any task, expected one of topic"):
        load_corpus(path)
    with pytest.raises(CorpusError, match="line 2, column stars: found '4'"):
        load_corpus(write("text,stars\nBad soup.,4\n"), tasks=tasks)


def test_any_column_can_be_a_task(encoder):
    """Also `disputed`, which holds truth values where it is no task."""
    task = Task("disputed", ("0", "1"))
    frame = load_corpus(split="validation", tasks=[task])
    examples = make_examples(frame, encoder.tokenizer, [task], 64)
    assert {example["labels"]["disputed"] for example in examples} == {0, 1}


def test_a_very_long_cell_is_read(write):
    frame = load_corpus(write(f"text,topic\n{'long ' * 40_000},sports\n"))
    assert len(frame["text"][0]) == 200_000


# --------------------------------------------------------------------------------------------------- own splits


def without_split(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Write a table without its splits, and load it."""
    spans = [json.dumps(spans) for spans in frame["entities"]]
    frame.assign(entities=spans).drop(columns=["split", "disputed"]).to_csv(path, index=False)
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


# ------------------------------------------------------------------------------------------------------- tokenising


def test_tokenize_gives_ids_and_places(encoder):
    (example,) = tokenize(["Zsófia's hat"], encoder.tokenizer, 256)
    assert encoder.tokenizer.convert_ids_to_tokens(example["input_ids"])[0] == "[CLS]"
    assert example["offsets"][0] == example["offsets"][-1] == (0, 0)
    assert "".join("Zsófia's hat"[a:b] for a, b in example["offsets"]) == "Zsófia'shat"
    assert example["complete"]


def test_tokenize_cuts_by_tokens_and_says_so(encoder):
    long, fits = tokenize(["word " * 10_000, "word " * 254], encoder.tokenizer, 256)
    assert (len(long["input_ids"]), long["complete"]) == (256, False)
    assert (len(fits["input_ids"]), fits["complete"]) == (256, True)
    assert long["input_ids"][-1] == encoder.tokenizer.sep_token_id


def test_tokenize_takes_any_sequence(encoder):
    texts = ["One.", "Two."]
    expected = tokenize(texts, encoder.tokenizer, 256)
    assert tokenize(tuple(texts), encoder.tokenizer, 256) == expected
    assert tokenize(pd.Series(texts, index=[7, 3]), encoder.tokenizer, 256) == expected
    assert tokenize([], encoder.tokenizer, 256) == []


@pytest.mark.parametrize(
    ("texts", "error", "fragment"),
    [
        ("One text.", TypeError, "one string, expected a list"),
        (["One.", None], TypeError, "text 1 is None"),
        ([float("nan")], TypeError, "text 0 is nan of type float"),
        ([b"One."], TypeError, "of type bytes"),
        ([["One."]], TypeError, "of type list"),
        (["One.", "half \ud83d"], ValueError, "text 1 holds half a surrogate pair"),
    ],
)
def test_tokenize_refuses_what_is_no_text(texts, error: type, fragment: str, encoder):
    with pytest.raises(error, match=fragment):
        tokenize(texts, encoder.tokenizer, 256)


def test_examples_of_a_table(encoder):
    frame = pd.DataFrame(
        {"text": [ANA] * 3, "topic": ["health", None, float("nan")], "entities": [[(0, 3, "PER")], None, float("nan")]}
    )
    examples = make_examples(frame, encoder.tokenizer, TASKS, 256)
    assert [example["labels"]["topic"] for example in examples] == [2, IGNORE, IGNORE]
    assert [example["labels"]["sentiment"] for example in examples] == [IGNORE] * 3  # there is no such column
    first, *others = [example["labels"]["entities"] for example in examples]
    assert first == [IGNORE, 1, 0, 0, 0, 0, IGNORE]
    assert others == [[IGNORE] * 7] * 2


def test_spans_behind_or_across_the_cut_are_ignored_with_one_warning(encoder):
    text = "Ana likes Ana Duarte and Oslo."  # [CLS] ana likes ana | du ##arte ...
    spans = [(0, 3, "PER"), (10, 20, "PER"), (25, 29, "LOC")]
    frame = pd.DataFrame({"text": [text, text], "entities": [spans, []]})
    with pytest.warns(UserWarning, match="2 spans lie behind the first 5 tokens") as found:
        cut, _ = make_examples(frame, encoder.tokenizer, [TASKS[3]], max_length=5)
    assert len(found) == 1
    assert cut["labels"]["entities"] == [IGNORE, 1, 0, IGNORE, IGNORE]


def test_a_span_that_ends_at_the_cut_is_learnt_without_a_warning(encoder):
    frame = pd.DataFrame({"text": ["Ana likes Ana Duarte and Oslo.", ANA], "entities": [[(10, 13, "PER")], []]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cut, _ = make_examples(frame, encoder.tokenizer, [TASKS[3]], max_length=5)
    assert cut["labels"]["entities"] == [IGNORE, 0, 0, 1, IGNORE]


# ---------------------------------------------------------------------------------------------------------- batches

lengths_of_texts = st.lists(st.integers(1, 300), max_size=60)


@given(lengths=lengths_of_texts, budget=st.integers(1, 600), seed=st.none() | st.integers(0, 9))
def test_batches_hold_every_text_once_within_the_budget(lengths: list[int], budget: int, seed: int | None):
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    batches = length_batches(lengths, budget, generator)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget for batch in batches)


def test_without_a_generator_the_longest_come_first():
    lengths = [3, 9, 5, 9, 1]
    assert [i for batch in length_batches(lengths, 10) for i in batch] == [1, 3, 2, 0, 4]


def test_a_generator_reshuffles_at_each_call_and_reproduces():
    lengths = [length for length in range(1, 21) for _ in range(10)]
    generator = torch.Generator().manual_seed(0)
    first, second = length_batches(lengths, 100, generator), length_batches(lengths, 100, generator)
    longest = [max(lengths[i] for i in batch) for batch in first]
    assert longest != sorted(longest) and longest != sorted(longest, reverse=True)
    assert {frozenset(batch) for batch in first} != {frozenset(batch) for batch in second}
    assert length_batches(lengths, 100, torch.Generator().manual_seed(0)) == first


def test_batches_by_length_waste_little(corpus, encoder):
    lengths = [len(example["input_ids"]) for example in tokenize(corpus["text"], encoder.tokenizer, 256)]
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in length_batches(lengths))
    assert padded < 1.15 * sum(lengths)


def test_collate_pads_each_thing_with_its_own_value(encoder):
    frame = pd.DataFrame({"text": [ANA, "Hi"], "topic": ["health", None], "entities": [[(0, 3, "PER")], []]})
    batch = collate(make_examples(frame, encoder.tokenizer, TASKS, 256), pad_id=7)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 7)
    assert batch["input_ids"][1, 3:].tolist() == [7] * 4
    assert batch["attention_mask"].tolist() == [[1] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert batch["labels"]["topic"].tolist() == [2, IGNORE]
    assert batch["labels"]["entities"][1].tolist() == [IGNORE, 0, IGNORE, IGNORE, IGNORE, IGNORE, IGNORE]


def test_collate_works_without_labels(encoder):
    batch = collate(tokenize([ANA, "Hi"], encoder.tokenizer, 256), pad_id=0)
    assert set(batch) == {"input_ids", "attention_mask"}
    assert all(tensor.dtype == torch.int64 for tensor in batch.values())


def test_progress_gives_every_item_and_prints_nothing_where_there_is_no_terminal(capfd):
    assert list(progress(range(5), "counting")) == [0, 1, 2, 3, 4]
    assert capfd.readouterr() == ("", "")
