"""What int8 costs each task, what threads bring, and what a large file takes: an exported model without a server.

    python -m experiments.export_test out/model

Writes data/results/serving_gate.csv, serving_threads.csv and serving_file.csv.
"""

import argparse
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from mtl_helpers.corpus import load_corpus

from .load_test import RESULTS, int8_forms, plain_answer, rounded, texts

ROWS = 20_000  # of the file
ROUNDS = 6
WAYS = ((1, 1), (2, 1), (1, 2))  # threads of an inference, inferences at a time


def gate(forms: dict[str, Path]) -> pd.DataFrame:
    """Both forms of int8 against fp32 on all sentences that were not trained on: a row per form and task."""
    from mtl_helpers.export import compare

    corpus = load_corpus()
    held_out = corpus[corpus["split"] != "train"].reset_index(drop=True)
    tables = [compare(folder, held_out)[0].assign(backend=name) for name, folder in forms.items()]
    return pd.concat(tables).round(5)


def threads(folder: Path) -> pd.DataFrame:
    """One inference on two threads, or two inferences on one thread each: texts a second, milliseconds of a text."""
    from mtl_helpers.serving import ServedModel

    models = {number: ServedModel(folder, "fp32", number) for number in (1, 2)}
    sample, rows = texts()[:150], []

    def timed(model: ServedModel, text: str) -> float:
        start = time.perf_counter()
        model.predict([text])
        return 1000 * (time.perf_counter() - start)

    for round_ in range(ROUNDS):
        for number, at_once in WAYS:
            start = time.perf_counter()
            with ThreadPoolExecutor(at_once) as pool:
                took = list(pool.map(lambda text, model=models[number]: timed(model, text), sample))
            row = {"threads": number, "at_once": at_once, "round": round_}
            row["per_second"] = len(sample) / (time.perf_counter() - start)
            rows.append(row | {"p50_ms": np.median(took), "p95_ms": np.percentile(took, 95)})
            print(rows[-1], flush=True)
    return pd.DataFrame(rows).round(3)


def file(folder: Path, work: Path) -> pd.DataFrame:
    """A Parquet file of 20,000 sentences on one core: rows done, seconds and memory after each part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sentences = list(islice(cycle(load_corpus()["text"]), ROWS))
    pq.write_table(pa.table({"id": list(range(ROWS)), "text": sentences}), work / "in.parquet")
    command = ["-m", "mtl_helpers", "predict", folder, work / "in.parquet", "--output", work / "out.parquet"]
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})  # the command inherits it
    process = psutil.Popen([sys.executable, *map(str, command)], stderr=subprocess.PIPE, text=True)
    os.sched_setaffinity(0, before)
    start, rows = time.perf_counter(), []
    for line in process.stderr:
        if done := re.match(r"(\d+) of \d+ rows", line):
            row = {"rows": int(done.group(1)), "seconds": time.perf_counter() - start}
            cpu = sum(process.cpu_times()[:2])
            rows.append(row | {"cpu_seconds": cpu, "memory_mb": process.memory_info().rss / 1e6})
            print(rows[-1], flush=True)
    if process.wait():
        raise RuntimeError(f"predict ended with {process.returncode}")
    return pd.DataFrame(rows).round(1)


def try_rounding(folder: Path, bits: int, block: int) -> dict:
    """Another rounding: a scale for each `block` weights, 4 or 8 bits; time and agreement on 150 test sentences.

    Returns:
        `backend` (its name), a share of the same answers for each task, `ms_a_text`: what the text would have taken on
        the machine of serving_speed.csv, by the ratio to fp32 on this one.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    from mtl_helpers.serving import ServedModel

    def write(fp32: Path, target: Path) -> None:
        how = DefaultWeightOnlyQuantConfig(block_size=block, is_symmetric=True, accuracy_level=4, bits=bits)
        model = onnx.load(fp32)
        del model.graph.value_info[:]
        quantizer = MatMulNBitsQuantizer(model, algo_config=how)
        logging.disable(logging.WARNING)
        try:
            quantizer.process()
        finally:
            logging.disable(logging.NOTSET)
        quantizer.model.save_model_to_file(str(target))

    sample, plain, took = texts()[:150], [], []
    with tempfile.TemporaryDirectory() as work:
        form = rounded(folder, Path(work) / "form", write)
        models = [ServedModel(folder, "fp32"), ServedModel(form, "int8")]
        for model in models:
            start = time.process_time()
            plain.append([plain_answer(model.predict([text])[0][0]) for text in sample])
            took.append(time.process_time() - start)
    speed = pd.read_csv(RESULTS / "serving_speed.csv").set_index(["backend", "batch"])["ms_a_text"]
    same = {task: np.mean([a[task] == b[task] for a, b in zip(*plain, strict=True)]) for task in plain[0][0]}
    return {"backend": f"{bits} bits, blocks of {block}", "ms_a_text": speed["fp32", 1] * took[1] / took[0], **same}


def main() -> None:
    """Measure what was asked for and write it."""
    parser = argparse.ArgumentParser("python -m experiments.export_test", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="an exported model")
    parser.add_argument("--only", choices=["gate", "threads", "file"], help="default: all three")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        forms = int8_forms(options.model, Path(work))
        studies = {"gate": lambda: gate(forms), "threads": lambda: threads(options.model)}
        studies["file"] = lambda: file(forms["int8 in blocks"], Path(work))
        for name, study in studies.items():
            if options.only in (None, name):
                study().to_csv(RESULTS / f"serving_{name}.csv", index=False)


if __name__ == "__main__":
    main()
