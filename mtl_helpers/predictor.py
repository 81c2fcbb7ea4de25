"""An exported model over tables: pandas or Arrow in and out, in Ray, Daft, Dask or Spark, and files of any size."""

import argparse
import json
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

from .folders import sha256_of
from .serving import ServedModel, cores

PART = 4096  # rows: what is written at once, and at most lost when a run is killed
STEP = 1024  # rows in memory at once


class Predictor:
    """Labels the column `text` of a table. Loads its model at first use, so that it can be sent to other processes.

    Args:
        folder: as `export` wrote it.
        precision: see ServedModel.
        workers: cores to use (default: all that the process may use).
    """

    def __init__(self, folder: str | Path, precision: str = "auto", workers: int | None = None) -> None:
        self.folder, self.precision, self.workers = str(folder), precision, workers

    def __reduce__(self) -> tuple:
        return Predictor, (self.folder, self.precision, self.workers)

    @cached_property
    def model(self) -> ServedModel:
        """The loaded model."""
        return ServedModel(self.folder, self.precision)

    def schema(self, id_type: Any = None) -> Any:
        """Arrow schema of the result: `id` of the given type, if there is one; then the columns of each task."""
        import pyarrow as pa

        fields = [] if id_type is None else [("id", id_type)]
        span = [("start", pa.int32()), ("end", pa.int32()), ("label", pa.string()), ("surface", pa.string())]
        for task in self.model.tasks:
            kind = pa.string() if task.level == "sentence" else pa.list_(pa.struct(span))
            fields += [(task.name, kind), (f"{task.name}_probability", pa.float32())][: 1 + (task.level == "sentence")]
        return pa.schema(fields)

    def __call__(self, table: Any) -> Any:
        """Label a table.

        Args:
            table: pandas.DataFrame or pyarrow.Table with a column `text`; `id` is kept if there is one.

        Returns:
            The same kind of table with as many rows in the same order: `id`; label and TASK_probability of sentence
            tasks; of token tasks a list of {start, end, label, surface}. Null where `text` is null.

        Raises:
            ValueError: no column `text`, or no strings in it.
        """
        import pyarrow as pa

        if not hasattr(table, "columns"):
            raise TypeError(f"found a {type(table).__name__}, expected a pandas.DataFrame or a pyarrow.Table")
        names = table.column_names if isinstance(table, pa.Table) else list(table.columns)
        if names.count("text") != 1:
            raise ValueError(f"found the columns {', '.join(map(str, names)) or '(none)'}, expected one column text")
        own = [name for name in ("id", "text") if name in names]
        arrow = table if isinstance(table, pa.Table) else pa.Table.from_pandas(table[own], preserve_index=False)
        kind = arrow["text"].type
        if not any(check(kind) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
            raise ValueError(f"column text: found {kind}, expected strings")
        texts = arrow["text"].to_pylist()
        with ThreadPoolExecutor(self.workers or cores()) as pool:
            answers = iter(self.model.predict([text for text in texts if text is not None], pool.map)[0])
        rows = [{} if text is None else self._row(next(answers)) for text in texts]
        result = pa.Table.from_pylist(rows, self.schema())
        if "id" in arrow.column_names:
            result = result.add_column(0, "id", arrow["id"])
        return result if table is arrow else result.to_pandas().set_index(table.index)

    def _row(self, answer: dict) -> dict:
        row = {name: value if isinstance(value, list) else value["label"] for name, value in answer.items()}
        return row | {f"{n}_probability": v["probability"] for n, v in answer.items() if isinstance(v, dict)}


def predict_file(predictor: Predictor, source: str | Path, output: str | Path) -> int:
    """Label a Parquet file of any size in constant memory; returns the number of rows.

    Parts are written beside `output`; the same call again goes on behind the last of them. In the end they become one
    file. Raises ValueError for parts that belong to another file or model, and for an output that is the source.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    source, output = Path(source), Path(output)
    if output.exists() and output.samefile(source):
        raise ValueError(f"{output}: is the file to be labelled, which would be lost; write the answers elsewhere")
    file = pq.ParquetFile(source, pre_buffer=False)
    columns = [name for name in ("id", "text") if name in file.schema_arrow.names]
    if file.schema_arrow.names.count("text") != 1:
        raise ValueError(f"{source}: found the columns {', '.join(file.schema_arrow.names)}, expected one column text")
    folder, done = (output.with_name(f"{output.name}.{end}") for end in ("parts", "done"))
    total, note = file.metadata.num_rows, folder / "about.json"
    shutil.rmtree(done, ignore_errors=True)  # of a call that was killed while it tidied up
    folder.mkdir(parents=True, exist_ok=True)
    about = {"rows": total, "source": sha256_of(source), "model": predictor.model.version}
    paths = sorted(folder.glob("*.parquet"))
    if (note.is_file() or paths) and not _is(note, about):
        raise ValueError(f"{folder}: belongs to another file or model; delete it to start over")
    if [path.stem for path in paths] != [f"{i:06}" for i in range(len(paths))]:
        raise ValueError(f"{folder}: parts are missing; delete it to start over")
    (folder / "noting").write_text(json.dumps(about))
    (folder / "noting").replace(note)
    first = sum(pq.read_metadata(path).num_rows for path in paths)
    start, waiting, seen, number = time.perf_counter(), [], 0, len(paths)
    for batch in file.iter_batches(STEP, columns=columns):
        seen += len(batch)
        if seen > first:
            waiting.append(predictor(pa.Table.from_batches([batch.slice(max(0, first - seen + len(batch)))])))
        if waiting and (sum(map(len, waiting)) >= PART or seen == total):
            pq.write_table(pa.concat_tables(waiting), folder / "writing")
            (folder / "writing").rename(folder / f"{number:06}.parquet")
            speed, waiting, number = (seen - first) / (time.perf_counter() - start), [], number + 1
            left = f"{speed:.0f} rows/s, {(total - seen) / speed / 60:.1f} minutes left"
            print(f"{seen} of {total} rows, {left}", file=sys.stderr, flush=True)
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        pq.write_table(predictor(file.schema_arrow.empty_table()), folder / "000000.parquet")
        paths = [folder / "000000.parquet"]
    with pq.ParquetWriter(folder / "writing", pq.read_schema(paths[0])) as writer:
        for path in paths:
            writer.write_table(pq.read_table(path))
    (folder / "writing").replace(output)
    folder.rename(done)  # at once: a part that is missing would be a part that was never there
    shutil.rmtree(done)
    return total


def _is(note: Path, about: dict) -> bool:
    """Whether a note is there, whole, and says this."""
    try:
        return json.loads(note.read_text(encoding="utf-8")) == about
    except (OSError, ValueError):
        return False


def run(options: argparse.Namespace) -> None:
    """The command `predict DIR in.parquet --output out.parquet`."""
    if len(options.texts) != 1 or not Path(options.texts[0]).is_file():
        raise ValueError(f"--output: found {options.texts}, expected one Parquet file to read")
    if not options.output:
        raise ValueError("--output: found an empty path, expected that of a Parquet file to write")
    rows = predict_file(Predictor(options.model), options.texts[0], options.output)
    print(f"{options.output}: {rows} rows", file=sys.stderr)
