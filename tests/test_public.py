"""Public data sets: found, fetched once, checked, and read in the shape of the corpus."""

import hashlib
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pandas as pd
import pytest

from mtl_helpers import load_public, public
from mtl_helpers.public import ENTITIES, PUBLIC, QUESTION_TYPE, questions_and_names

CONLL = (
    "No\tO\nnames\tO\n\t\nZoë\tB-person\nB.\tI-person\n\n\n"
    "Acme\tB-group\nOslo\tB-location\nand\tO\nOslo\tI-location\nX1\tB-product\n"
)
ROWS = [
    ("No names", []),
    ("Zoë B.", [(0, 6, "PER")]),
    ("Acme Oslo and Oslo X1", [(0, 4, "ORG"), (5, 9, "LOC"), (14, 18, "LOC")]),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where files are looked for; every download fails."""

    def offline(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setenv("MTL_PUBLIC", str(tmp_path))
    monkeypatch.setattr(urllib.request, "urlopen", offline)
    return tmp_path


def put(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, *contents: bytes) -> None:
    """Put files of a data set into the folder as if they were the true ones."""
    files = {}
    for (file, (place, _)), raw in zip(PUBLIC[name].items(), contents, strict=True):
        (folder / file).write_bytes(raw)
        files[file] = place, hashlib.sha256(raw).hexdigest()
    monkeypatch.setitem(PUBLIC, name, files)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'glue', expected one of stsb, trec6, wnut17"):
        load_public("glue")


@pytest.mark.parametrize("name", PUBLIC)
def test_offline_it_says_where_to_put_the_file(name: str, folder: Path):
    with pytest.raises(FileNotFoundError) as error:
        load_public(name)
    file, (place, _) = next(iter(PUBLIC[name].items()))
    assert all(text in str(error.value) for text in (str(folder / file), f"{public.HOST}{place}", "MTL_PUBLIC"))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_a_file_with_another_hash_is_refused(name: str, folder: Path):
    for file in PUBLIC[name]:
        (folder / file).write_text("a,b,1\n")
    file, (_, sha256) = next(iter(PUBLIC[name].items()))
    with pytest.raises(ValueError, match=rf"{file}: its SHA-256 is [0-9a-f]{{64}}, expected {sha256}"):
        load_public(name)


def test_a_file_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = b'One.,"Two, three.",2.5\n'
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "tiny.csv").write_bytes(raw)
    monkeypatch.setattr(public, "HOST", f"{(tmp_path / 'there').as_uri()}/")
    monkeypatch.setitem(PUBLIC, "stsb", {"here.csv": ("tiny.csv", hashlib.sha256(raw).hexdigest())})
    monkeypatch.setenv("MTL_PUBLIC", str(tmp_path / "cache" / "deep"))
    first = load_public("stsb")
    (tmp_path / "there" / "tiny.csv").unlink()
    pd.testing.assert_frame_equal(load_public("stsb"), first)
    assert first.to_dict("records") == [{"sentence_1": "One.", "sentence_2": "Two, three.", "score": 2.5}]


def test_questions_are_read_with_their_types(folder: Path, monkeypatch: pytest.MonkeyPatch):
    train = "".join(f"{i % 6} Which number is {i} ?\n" for i in range(20)) + "4 What is a sister\xf0city ?\n"
    put(folder, monkeypatch, "trec6", train.encode("latin-1"), b"5 How far ?\n0 Why ?\n")
    table = load_public("trec6")
    assert list(table) == ["id", "text", "question_type", "split"]
    assert table["split"].tolist() == [
        *["train"] * 9,
        "validation",
        *["train"] * 9,
        "validation",
        "train",
        "test",
        "test",
    ]
    assert table["question_type"].tolist()[:7] == [*QUESTION_TYPE.labels, QUESTION_TYPE.labels[0]]
    assert table["text"].tolist()[-3:] == ["What is a sister\xf0city ?", "How far ?", "Why ?"]
    assert table["id"].is_unique


def test_names_are_read_as_spans(folder: Path, monkeypatch: pytest.MonkeyPatch):
    put(folder, monkeypatch, "wnut17", CONLL.encode(), CONLL.encode(), b"it\tO\n")
    table = load_public("wnut17")
    assert list(table) == ["id", "text", "entities", "split"]
    for split in ("train", "validation"):
        rows = table[table["split"] == split]
        assert list(zip(rows["text"], rows["entities"], strict=True)) == ROWS
    assert table["text"].iloc[-1] == "it" and table["split"].iloc[-1] == "test"


def test_questions_and_names_share_a_table_and_no_row(folder: Path, monkeypatch: pytest.MonkeyPatch):
    put(folder, monkeypatch, "trec6", b"".join(b"4 Where ?\n" for _ in range(20)), b"5 How far ?\n")
    put(folder, monkeypatch, "wnut17", CONLL.encode() * 9, CONLL.encode(), b"it\tO\n")
    table = questions_and_names("train")
    assert set(table["split"]) == {"train"} and table.index.is_unique
    assert (table.question_type.isna() != table.entities.isna()).all()
    drawn = questions_and_names("train", 5, seed=1)
    assert drawn.question_type.notna().sum() == 5 == drawn.entities.notna().sum()
    assert drawn.equals(questions_and_names("train", 5, seed=1))
    assert not drawn.equals(questions_and_names("train", 5, seed=2))
    assert questions_and_names("test").text.tolist() == ["How far ?", "it"]


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("trec6", {"train": 4907, "validation": 545, "test": 500}),
        ("wnut17", {"train": 3394, "validation": 1009, "test": 1287}),
    ],
)
def test_the_true_files(name: str, sizes: dict[str, int]):
    """Where they are at hand: as many texts as published, every label one of the task's."""
    try:
        table = load_public(name)
    except FileNotFoundError:
        pytest.skip(f"no {name} in the folder that MTL_PUBLIC names")
    assert table["split"].value_counts().to_dict() == sizes
    assert table["text"].str.strip().ne("").all()
    if name == "trec6":
        assert set(table["question_type"]) == set(QUESTION_TYPE.labels)
        return
    spans = [(row.text[a:b], label) for row in table.itertuples() for a, b, label in row.entities]
    assert len(spans) == 1693 + 617 + 810
    assert all(surface == surface.strip() and label in ENTITIES.labels for surface, label in spans)
