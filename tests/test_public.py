"""Public data sets: found, fetched once, checked, and read in the shape of the corpus."""

import hashlib
import io
import json
import tarfile
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pandas as pd
import pytest

from experiments import public
from experiments.public import ENTITIES, INTENT, PUBLIC, QUESTION_TYPE, SLOTS, load_public, questions_and_names
from mtl_helpers.tables import check_table

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


@pytest.fixture
def put(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Put files of a data set into the folder as if they were the true ones."""

    def write(name: str, *contents: bytes) -> None:
        files = {}
        for (file, (place, _)), raw in zip(PUBLIC[name].items(), contents, strict=True):
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_bytes(raw)
            files[file] = place, hashlib.sha256(raw).hexdigest()
        monkeypatch.setitem(PUBLIC, name, files)

    return write


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'glue', expected one of stsb, trec6, wnut17, reviews, snips"):
        load_public("glue")


def test_reviews_are_read_with_their_mean_rating_as_sentiment(put):
    lines = b'1_1\t-0.51\tit "froze".\r\n1_2\t0.5\tit is grey.\r\n2_1\t3\ti love it!\r\n'
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as archive:
        member = tarfile.TarInfo("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt")
        member.size = len(lines)
        archive.addfile(member, io.BytesIO(lines))
    put("reviews", file.getvalue())
    table = load_public("reviews")
    assert table["text"].tolist() == ['it "froze".', "it is grey.", "i love it!"]
    assert table["sentiment"].tolist() == ["negative", "neutral", "positive"]
    assert set(table["split"]) == {"test"} and table["id"][2] == "reviews-3"


@pytest.mark.parametrize("name", PUBLIC)
def test_offline_or_with_another_hash_it_says_what_to_do(name: str, folder: Path):
    file, (place, sha256) = next(iter(PUBLIC[name].items()))
    with pytest.raises(FileNotFoundError) as error:
        load_public(name)
    assert all(text in str(error.value) for text in (str(folder / file), f"{public.HOST}{place}", "MTL_PUBLIC"))
    assert list(folder.iterdir()) == []
    for path in PUBLIC[name]:
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text("a,b,1\n")
    with pytest.raises(ValueError, match=rf"{file}: its SHA-256 is [0-9a-f]{{64}}, expected {sha256}; delete the file"):
        load_public(name)


def test_a_file_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    raw = b'One.,"Two, three.",2.5\n'
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "tiny.csv").write_bytes(raw)
    monkeypatch.setattr(public, "HOST", f"{(tmp_path / 'far').as_uri()}/")
    monkeypatch.setitem(PUBLIC, "stsb", {"deeper/here.csv": ("tiny.csv", hashlib.sha256(raw).hexdigest())})
    monkeypatch.setenv("MTL_PUBLIC", str(tmp_path / "cache" / "deep"))
    first = load_public("stsb")
    (tmp_path / "far" / "tiny.csv").unlink()
    pd.testing.assert_frame_equal(load_public("stsb"), first)
    assert first.to_dict("records") == [{"sentence_1": "One.", "sentence_2": "Two, three.", "score": 2.5}]


def test_questions_are_read_with_their_types(put):
    train = "".join(f"{i % 6} Which number is {i} ?\n" for i in range(20)) + "4 What is a sister\xf0city ?\n"
    put("trec6", train.encode("latin-1"), b"5 How far ?\n0 Why ?\n")
    table = load_public("trec6")
    assert list(table) == ["id", "text", "question_type", "split"]
    nine = ["train"] * 9 + ["validation"]
    assert table["split"].tolist() == [*nine, *nine, "train", "test", "test"]
    assert table["question_type"].tolist()[:7] == [*QUESTION_TYPE.labels, QUESTION_TYPE.labels[0]]
    assert table["text"].tolist()[-3:] == ["What is a sister\xf0city ?", "How far ?", "Why ?"]
    assert table["id"].is_unique


def test_names_are_read_as_spans_beside_questions_in_one_table(put):
    put("wnut17", (CONLL + "\n").encode() * 9, CONLL.encode(), b"it\tO\n")
    table = load_public("wnut17")
    assert list(table) == ["id", "text", "entities", "split"]
    for split, times in (("train", 9), ("validation", 1)):
        rows = table[table["split"] == split]
        assert list(zip(rows["text"], rows["entities"], strict=True)) == ROWS * times
    assert table[["text", "split"]].to_numpy()[-1].tolist() == ["it", "test"]
    put("trec6", b"".join(b"4 Where ?\n" for _ in range(20)), b"5 How far ?\n")
    both = questions_and_names("train")
    assert set(both["split"]) == {"train"} and both.index.is_unique
    assert (both.question_type.isna() != both.entities.isna()).all()
    drawn = questions_and_names("train", 5, seed=1)
    assert drawn.question_type.notna().sum() == 5 == drawn.entities.notna().sum()
    assert drawn.equals(questions_and_names("train", 5, seed=1))
    assert not drawn.equals(questions_and_names("train", 5, seed=2))
    assert questions_and_names("test").text.tolist() == ["How far ?", "it"]


def request(*pieces: str | tuple[str, str]) -> dict:
    """A request as SNIPS has it: pieces of text, or (slot, piece)."""
    pairs = [(None, piece) if isinstance(piece, str) else piece for piece in pieces]
    return {"data": [{"text": piece} | ({"entity": slot} if slot else {}) for slot, piece in pairs]}


def test_requests_are_read_with_intents_and_slots(put):
    first, second, *_ = INTENT.labels
    requests = {file: [] for file in PUBLIC["snips"]}
    train, test = f"snips/train_{first}_full.json", f"snips/validate_{first}.json"
    requests[train] = [
        request(" play ", ("artist", " Zoë B. "), " on", ("service", "  "), ("year", "1999 ")),
        request("Say \n"),
        request("same ", ("album", "text")),
        request("same ", ("track", "text")),  # the same text once more
        request("in the ", ("city", "test")),  # also in the test part
        *(request(f"number {i}") for i in range(8)),
    ]
    requests[test] = [request("in the ", ("state", "test")), request("in the test")]
    requests[f"snips/train_{second}_full.json"] = [request("Say"), request("caf\xe9")]
    contents = [
        json.dumps({file.split("_")[1].removesuffix(".json"): many}, ensure_ascii=False)
        for file, many in requests.items()
    ]
    put("snips", *(text.encode("latin-1" if second in text else "utf-8") for text in contents))
    table = load_public("snips")
    assert list(table) == ["id", "text", "intent", "slots", "split"] and table["id"].is_unique
    text = "play  Zoë B.  on  1999"
    rows = table.to_dict("records")
    assert (rows[0]["text"], rows[0]["intent"]) == (text, first)
    assert [(text[a:b], slot) for a, b, slot in rows[0]["slots"]] == [("Zoë B.", "artist"), ("1999", "year")]
    texts = [text, "Say", "same text", *(f"number {i}" for i in range(8)), "caf\xe9", "in the test", "in the test"]
    assert table["text"].tolist() == texts
    assert rows[2]["slots"] == [(5, 9, "album")] and rows[-2]["slots"] == [(7, 11, "state")]
    assert table["split"].tolist() == ["train"] * 9 + ["validation"] + ["train"] * 2 + ["test"] * 2
    assert table["intent"].tolist()[-4:] == [first, second, first, first]


SIZES = {
    "stsb": {},
    "trec6": {"train": 4907, "validation": 545, "test": 500},
    "wnut17": {"train": 3394, "validation": 1009, "test": 1287},
    "snips": {"train": 12252, "validation": 1361, "test": 700},
}


@pytest.mark.parametrize("name", PUBLIC)
def test_the_true_files(name: str):
    """Where they are at hand: as many texts as published, every label one of the task's."""
    try:
        table = load_public(name)
    except FileNotFoundError:
        pytest.skip(f"no {name} in the folder that MTL_PUBLIC names")
    if name == "stsb":
        assert len(table) == 1379 and table["score"].between(0, 5).all() and not table.isna().any(axis=None)
        return
    assert table["split"].value_counts().to_dict() == SIZES[name]
    tasks = {"trec6": [QUESTION_TYPE], "wnut17": [ENTITIES], "snips": [INTENT, SLOTS]}[name]
    checked = check_table(table, tasks, name)
    for task in tasks:
        assert checked[task.name].tolist() == table[task.name].tolist()
        labels = table[task.name] if task.level == "sentence" else [s[2] for spans in table[task.name] for s in spans]
        assert set(labels) == set(task.labels)
    if name == "wnut17":
        assert table["entities"].map(len).sum() == 1693 + 617 + 810
