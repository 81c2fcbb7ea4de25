"""Another runtime: OpenVINO beside ONNX Runtime on the same graph, its speed and its memory over shapes of batches.

    pip install openvino     # no dependency of the course
    python -m experiments.openvino_shapes out/model

Writes data/results/serving_openvino.csv: `ms_a_text`, processor time on one thread by size of the batch (median of
rounds in turn), and `memory_mb` of a process by the number of different shapes (texts x tokens) that it has seen.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from mtl_helpers.serving import open_session

from .load_test import BATCHES, RESULTS, texts

RUNTIMES = ("ONNX Runtime", "OpenVINO")
SHAPES = (1, 50, 100, 200, 300, 400)


def runner(runtime: str, graph: Path) -> Callable[[dict], object]:
    """A function that runs a graph on one thread in fp32."""
    if runtime == "ONNX Runtime":
        session = open_session(graph, 1)
        return lambda feed: session.run(None, feed)
    import openvino

    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = openvino.Core().compile_model(str(graph), "CPU", settings).create_infer_request()
    return lambda feed: request.infer(feed)


def fed(lines: list[list[int]]) -> dict[str, np.ndarray]:
    """Token ids, padded with zeros, and their mask."""
    ids = np.zeros((len(lines), max(map(len, lines))), np.int64)
    mask = np.zeros_like(ids)
    for row, line in enumerate(lines):
        ids[row, : len(line)], mask[row, : len(line)] = line, 1
    return {"input_ids": ids, "attention_mask": mask}


def speed(folder: Path) -> list[dict]:
    """Milliseconds a text, sizes of batches and runtimes in turn."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    lines = [encoding.ids for encoding in tokenizer.encode_batch(texts()[:128])]
    runs, spent = {name: runner(name, folder / "model.onnx") for name in RUNTIMES}, {}
    for start in range(0, len(lines), max(BATCHES)):
        for size in BATCHES:
            for name, run in runs.items():
                feeds = [fed(lines[i : i + size]) for i in range(start, start + max(BATCHES), size)]
                for again in (False, True):  # the second time all shapes are known
                    before = time.process_time()
                    for feed in feeds:
                        run(feed)
                    if again:
                        spent.setdefault((name, size), []).append((time.process_time() - before) * 1000 / max(BATCHES))
    return [
        {"runtime": name, "what": "ms_a_text", "n": size, "value": np.median(took)}
        for (name, size), took in spent.items()
    ]


def memory(folder: Path, runtime: str) -> None:
    """Print shapes seen and megabytes: 400 shapes of 1 to 16 texts and 8 to 57 tokens, in random order."""
    run, random = runner(runtime, folder / "model.onnx"), np.random.default_rng(0)
    shapes = random.permutation([(rows, tokens) for rows in range(1, 17) for tokens in range(8, 58)])
    for seen, (rows, tokens) in enumerate(shapes[: max(SHAPES)], start=1):
        run(fed(random.integers(1000, 20_000, (rows, tokens)).tolist()))
        if seen in SHAPES:
            print(seen, psutil.Process().memory_info().rss / 1e6, flush=True)


def main(folder: Path) -> None:
    """Measure both, memory in a process for each runtime."""
    rows = speed(folder)
    for name in RUNTIMES:
        command = [sys.executable, "-m", "experiments.openvino_shapes", folder, name]
        for line in subprocess.check_output(command, text=True).splitlines():
            seen, megabytes = map(float, line.split())
            rows.append({"runtime": name, "what": "memory_mb", "n": int(seen), "value": megabytes})
    pd.DataFrame(rows).round(2).to_csv(RESULTS / "serving_openvino.csv", index=False)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        memory(Path(sys.argv[1]), sys.argv[2])
    else:
        main(Path(sys.argv[1]))
