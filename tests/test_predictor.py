"""Tables and files: order, ids, types, memory, going on."""

import json
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtl_helpers import predictor
from mtl_helpers.predictor import Predictor, predict_file
from mtl_helpers.serving import ServedModel

TEXTS = ["Could Ana Duarte send the minutes?", None, "", "Behold!", "Łódź " * 200]


@pytest.fixture
def folder(exported: Callable[[str], Path]) -> Path:
    return exported("bert")


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame({"id": [f"t{i}" for i in range(5)], "text": TEXTS, "other": range(5)}, index=list("vwxyz"))


def test_a_frame_keeps_ids_index_and_order(folder: Path, table: pd.DataFrame):
    result = Predictor(folder)(table)
    answers, _ = ServedModel(folder).predict([text for text in TEXTS if text is not None])
    assert result.index.tolist() == list("vwxyz") and result["id"].tolist() == table["id"].tolist()
    assert result["topic"].dropna().tolist() == [answer["topic"]["label"] for answer in answers]
    assert result.loc["w"].drop("id").isna().all()  # no text, no answer
    keys = ("start", "end", "label", "surface")
    spans = [[{key: span[key] for key in keys} for span in answer["entities"]] for answer in answers]
    assert [list(value) for value in result["entities"].dropna()] == spans


def test_arrow_in_arrow_out_with_the_same_schema_for_any_rows(folder: Path, table: pd.DataFrame):
    ask, arrow = Predictor(folder), pa.Table.from_pandas(table, preserve_index=False)
    whole, one, none = ask(arrow), ask(arrow.slice(1, 1)), ask(arrow.slice(0, 0))
    assert whole.schema == one.schema == none.schema
    assert whole.schema.remove(0) == ask.schema() and whole.schema.names[0] == "id"
    span = "list<item: struct<start: int32, end: int32, label: string, surface: string>>"
    assert str(whole.schema.field("entities").type).replace("element", "item") == span
    assert none.num_rows == 0


def test_it_travels_without_its_model(folder: Path, table: pd.DataFrame):
    ask = Predictor(folder, workers=1)
    expected = ask(table)
    copy = pickle.loads(pickle.dumps(ask))
    assert "model" not in vars(copy) and len(pickle.dumps(ask)) < 1000
    pd.testing.assert_frame_equal(copy(table), expected)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"txt": ["a"]}), "columns txt, expected one column text"),
        (pd.DataFrame([["a", "b"]], columns=["text", "text"]), "columns text, text, expected one column text"),
        (pd.DataFrame({"text": [1]}), "int64"),
        (["a"], "found a list, expected a pandas.DataFrame"),
    ],
)
def test_other_tables_are_refused(folder: Path, table: pd.DataFrame, message: str):
    with pytest.raises((TypeError, ValueError), match=message):
        Predictor(folder)(table)


def test_other_columns_may_hold_anything(folder: Path):
    mixed = pd.DataFrame({"text": ["Behold!", "Ana"], "gold": [[(0, 3, "PER")], "none"]})
    assert len(Predictor(folder)(mixed)) == 2


def test_it_runs_in_daft(folder: Path):
    daft = pytest.importorskip("daft", reason="daft is not installed")
    ask = Predictor(folder)
    kind = daft.DataType.from_arrow_type(pa.struct(list(ask.schema())))

    @daft.udf(return_dtype=kind)
    def label(texts: "daft.Series") -> list:
        return ask(pa.table({"text": pa.array(texts.to_pylist(), pa.string())})).to_pylist()

    rows = daft.from_pydict({"id": list(range(40)), "text": ["Behold!", "Ana went to Oslo."] * 20})
    answers = rows.with_column("answer", label(rows["text"])).sort("id").to_pydict()
    expected = ask(pa.table({"text": answers["text"]})).to_pylist()
    assert [row["topic"] for row in answers["answer"]] == [row["topic"] for row in expected]
    assert [row["entities"] for row in answers["answer"]] == [row["entities"] for row in expected]


# ----------------------------------------------------------------------------------------------------- files


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """300 rows in row groups of 70, so that batches, parts and groups never end together."""
    texts = [f"Ana met number {i} in Oslo." if i % 7 else None for i in range(300)]
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"id": pa.array(range(300), pa.int64()), "text": texts}), path, row_group_size=70)
    return path


def test_a_file_is_labelled_in_parts_and_goes_on(folder: Path, source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(predictor, "STEP", 16)
    monkeypatch.setattr(predictor, "PART", 50)
    ask, output = Predictor(folder), tmp_path / "out" / "out.parquet"
    calls: list[int] = []

    def counting(rows: pa.Table) -> pa.Table:
        if calls and len(calls) == 11:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(rows))
        return ask(rows)

    counting.model = ask.model
    with pytest.raises(KeyboardInterrupt):
        predict_file(counting, source, output)
    assert not output.exists()
    before, calls[:] = sum(calls), []
    assert predict_file(counting, source, output) == 300
    assert 300 - before <= sum(calls) < 300  # what had been written was not done again
    result, whole = pq.read_table(output), ask(pq.read_table(source))
    assert result.schema == whole.schema and result["id"].type == pa.int64()
    pd.testing.assert_frame_equal(result.to_pandas(), whole.to_pandas(), atol=1e-5)
    assert [path.name for path in output.parent.iterdir()] == ["out.parquet"]


def test_parts_of_another_file_are_refused(folder: Path, source: Path, tmp_path: Path):
    parts = tmp_path / "out.parquet.parts"
    parts.mkdir()
    (parts / "about.json").write_text(json.dumps({"rows": 1}))
    with pytest.raises(ValueError, match=r"out\.parquet\.parts: belongs to another file or model"):
        predict_file(Predictor(folder), source, tmp_path / "out.parquet")


def test_an_empty_file_gives_an_empty_file(folder: Path, tmp_path: Path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "in.parquet")
    assert predict_file(Predictor(folder), tmp_path / "in.parquet", tmp_path / "out.parquet") == 0
    assert pq.read_table(tmp_path / "out.parquet").schema == Predictor(folder).schema()


def test_the_command(folder: Path, source: Path, tmp_path: Path):
    command = ["-m", "mtl_helpers", "predict", str(folder), str(source), "--output", str(tmp_path / "out.parquet")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "" and "300 of 300 rows" in done.stderr
    assert pq.read_table(tmp_path / "out.parquet")["id"].to_pylist() == list(range(300))


def test_a_call_that_is_killed_while_it_tidies_up_loses_nothing(
    folder: Path, source: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr(predictor, "PART", 50)
    ask, output, remove = Predictor(folder), tmp_path / "out.parquet", shutil.rmtree

    def killed(path: Path, ignore_errors: bool = False) -> None:
        if path.exists():
            next(path.glob("*.parquet")).unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        predict_file(ask, source, output)
    monkeypatch.setattr(shutil, "rmtree", remove)
    assert predict_file(ask, source, output) == 300
    assert pq.read_table(output)["id"].to_pylist() == list(range(300))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.parquet", "out.parquet"]


def test_a_file_of_the_same_size_is_another_file(folder: Path, source: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(predictor, "PART", 50)
    monkeypatch.setattr(predictor, "STEP", 50)
    ask, table = Predictor(folder), pq.read_table(source)

    def stopping(rows: pa.Table) -> pa.Table:
        if rows["id"][0].as_py() > 100:
            raise KeyboardInterrupt
        return ask(rows)

    stopping.model = ask.model
    with pytest.raises(KeyboardInterrupt):
        predict_file(stopping, source, tmp_path / "out.parquet")
    parts = tmp_path / "out.parquet.parts"
    assert len(list(parts.glob("*.parquet"))) == 3
    texts = [text and text.replace("Oslo", "Rome") for text in table["text"].to_pylist()]
    pq.write_table(table.set_column(1, "text", pa.array(texts)), source, row_group_size=70)
    with pytest.raises(ValueError, match="belongs to another file or model"):
        predict_file(ask, source, tmp_path / "out.parquet")
    pq.write_table(table, source, row_group_size=70)
    (parts / "000000.parquet").unlink()
    with pytest.raises(ValueError, match="parts are missing"):
        predict_file(ask, source, tmp_path / "out.parquet")


def test_the_source_is_no_place_for_the_answers(folder: Path, source: Path):
    before = source.read_bytes()
    with pytest.raises(ValueError, match="is the file to be labelled, which would be lost"):
        predict_file(Predictor(folder), source, source.parent / "." / source.name)
    assert source.read_bytes() == before
