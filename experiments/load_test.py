"""How much a server answers: requests a second, latency and memory, with fp32, int8 and torch behind it.

    python -m experiments.load_test out/model
    python -m experiments.load_test out/model --texts mine.txt --output measured

Everything stays on this machine (127.0.0.1) and is bounded. Each server has one core of its own, the clients share the
others. Rounds go through the back ends in turn, so that what else the machine does hits all of them. Writes
serving_load.csv, serving_speed.csv and serving_memory.csv, by default into data/results, where notebook 06 reads them.
"""

import argparse
import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from mtl_helpers.corpus import load_corpus

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"
CLIENTS = (1, 8, 32)
ROUNDS, SECONDS = 4, 4.0
BATCHES = (1, 8, 32)


def texts(file: Path | None = None) -> list[str]:
    """What is sent, one a request: the lines of a file, or the sentences of the split test."""
    if file is None:
        return load_corpus(split="test")["text"].tolist()
    if not (lines := [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]):
        raise ValueError(f"{file}: no text, expected one a line")
    return lines


# --------------------------------------------------------------------------------------------- the back ends


class Torch:
    """The trained model itself in the place of the exported one: the naive server."""

    version, precision = "torch", "fp32"

    def __init__(self, folder: Path) -> None:
        import torch

        from mtl_helpers import MultiTaskModel

        torch.set_num_threads(1)
        self.model = MultiTaskModel.from_pretrained(folder)
        self.tasks = self.model.tasks

    def predict(self, texts: list[str]) -> tuple[list[dict], list[bool]]:
        """As ServedModel.predict, without probabilities of spans."""
        answers = []
        for row in self.model.predict(texts).to_dict("records"):
            answer = {}
            for task in self.tasks:
                if task.level == "token":
                    keys = ("start", "end", "label", "surface")
                    answer[task.name] = [
                        dict(zip(keys, span, strict=True)) | {"probability": 1.0} for span in row[task.name]
                    ]
                else:
                    answer[task.name] = {"label": row[task.name], "probability": row[f"{task.name}_probability"]}
            answers.append(answer)
        return answers, [False] * len(texts)


def rounded(folder: Path, form: Path, write: Callable[[Path, Path], object]) -> Path:
    """A copy of an exported model with a model.int8.onnx that `write(fp32, int8)` makes, whatever the gate says."""
    from mtl_helpers.folders import read_json, sha256_of, write_json

    form.mkdir()
    for file in ("tokenizer.json", "tasks.json", "model.onnx"):
        shutil.copy(folder / file, form / file)
    write(folder / "model.onnx", form / "model.int8.onnx")
    settings = read_json(folder / "serving.json")
    settings["sha256"]["model.int8.onnx"] = sha256_of(form / "model.int8.onnx")
    write_json(form / "serving.json", settings)
    return form


def int8_forms(folder: Path, work: Path) -> dict[str, Path]:
    """Both forms of int8, made anew beside each other: {name: folder}."""
    from mtl_helpers.export import quantise

    return {
        name: rounded(folder, work / name, lambda fp32, int8, gentle=gentle: quantise(fp32, int8, gentle))
        for name, gentle in (("int8", False), ("int8 in blocks", True))
    }


@contextmanager
def server(folder: Path, backend: str) -> Iterator[tuple[int, psutil.Process]]:
    """A server on the last core; its port and process."""
    core = max(os.sched_getaffinity(0))
    code = f"import os; os.sched_setaffinity(0, {{{core}}})\nfrom types import SimpleNamespace as S\n"
    code += "from mtl_helpers import service\n"
    if backend == "torch":
        code += "from experiments.load_test import Torch\nservice.ServedModel = lambda folder, _: Torch(folder)\n"
    precision = "int8" if backend.startswith("int8") else "fp32"
    options = f"model={str(folder)!r}, host='127.0.0.1', port=0, precision={precision!r}, log_texts=False"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{code}service.run(S({options}))"],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        while not (line := re.search(r"localhost:(\d+)", process.stderr.readline())):
            if process.poll() is not None:
                raise RuntimeError(f"{backend}: the server ended with {process.returncode}")
        yield int(line.group(1)), psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(30)


# ------------------------------------------------------------------------------------------------- the load


async def ask(port: int, sample: list[str], clients: int, seconds: float, most: int = 10**9) -> list[float]:
    """Seconds of each request of so many clients, each of which sends the next when it has its answer."""
    bodies = [json.dumps({"texts": [text]}).encode() for text in sample]
    head = "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"
    end, took = time.perf_counter() + seconds, []

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        sent = number
        while time.perf_counter() < end and len(took) < most:
            body, start = bodies[sent % len(bodies)], time.perf_counter()
            sent += clients
            writer.write(head.format(len(body)).encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer).group(1)))
            if not answer.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(answer.decode())
            took.append(time.perf_counter() - start)
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return took


def load(folders: dict[str, Path], sample: list[str]) -> pd.DataFrame:
    """A row per back end, number of clients and round: requests a second, percentiles in milliseconds, memory."""
    rows = []
    with ExitStack() as stack:
        running = {name: stack.enter_context(server(folder, name)) for name, folder in folders.items()}
        for port, _ in running.values():
            asyncio.run(ask(port, sample, 1, 2.0))  # warm
        for round_, clients in [(r, c) for r in range(ROUNDS) for c in CLIENTS]:
            for name, (port, process) in running.items():
                before, start = sum(process.cpu_times()[:2]), time.perf_counter()
                took = asyncio.run(ask(port, sample, clients, SECONDS))
                seconds = time.perf_counter() - start
                core = (sum(process.cpu_times()[:2]) - before) / seconds
                p50, p95, p99 = np.percentile(np.array(took) * 1000, [50, 95, 99])
                row = {"backend": name, "clients": clients, "round": round_, "requests": len(took)}
                row |= {"per_second": len(took) / seconds, "p50_ms": p50, "p95_ms": p95, "p99_ms": p99}
                rows.append(row | {"core_share": core, "per_core_second": len(took) / seconds / core})
                rows[-1]["memory_mb"] = process.memory_info().rss / 1e6
                print(rows[-1], flush=True)
    return pd.DataFrame(rows).round(3)


def memory(folders: dict[str, Path], sample: list[str]) -> pd.DataFrame:
    """Memory of a server after 0, 1,000, … 10,000 requests of 8 clients."""
    rows = []
    for name in ("fp32", "int8 in blocks"):
        with server(folders[name], name) as (port, process):
            for requests in (0, 1000, 2000, 4000, 6000, 8000, 10_000):
                asyncio.run(ask(port, sample, 8, 600, requests - (rows[-1]["requests"] if requests else 0)))
                rows.append({"backend": name, "requests": requests, "memory_mb": process.memory_info().rss / 1e6})
                print(rows[-1], flush=True)
    return pd.DataFrame(rows).round(1)


def speed(folders: dict[str, Path], source: Path, sample: list[str]) -> pd.DataFrame:
    """Milliseconds of processor time a text, on one thread, in batches of several sizes, and agreement with fp32.

    int8 answers the texts of a batch one by one, as when it is served.
    """
    from mtl_helpers.serving import ServedModel

    models: dict[str, Callable] = {}
    for name, folder in folders.items():
        models[name] = Torch(source) if name == "torch" else ServedModel(folder, "fp32" if name == "fp32" else "int8")
    rows = []
    plain = {name: [plain_answer(answer) for answer in model.predict(sample)[0]] for name, model in models.items()}
    spent: dict[tuple, list[float]] = {}
    for start in range(0, min(192, len(sample)), max(BATCHES)):
        for size in BATCHES:
            for name, model in models.items():
                before = time.process_time()
                for first in range(start, start + max(BATCHES), size):
                    model.predict(sample[first : first + size])
                took = (time.process_time() - before) * 1000 / len(sample[start : start + max(BATCHES)])
                spent.setdefault((name, size), []).append(took)
    for (name, size), times in spent.items():
        agreement = {
            task: np.mean([a[task] == b[task] for a, b in zip(plain[name], plain["fp32"], strict=True)])
            for task in plain[name][0]
        }
        ratio = np.median(np.array(spent["torch", size]) / np.array(times)) if "torch" in models else np.nan
        rows.append({"backend": name, "batch": size, "ms_a_text": np.median(times), "times_torch": ratio, **agreement})
    return pd.DataFrame(rows).round(4)


def plain_answer(answer: dict) -> dict:
    """Labels and spans without probabilities."""
    return {
        name: [(s["start"], s["end"], s["label"]) for s in value] if isinstance(value, list) else value["label"]
        for name, value in answer.items()
    }


def main() -> None:
    """Measure what was asked for and write it."""
    parser = argparse.ArgumentParser("python -m experiments.load_test", description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, help="an exported model that has its model.safetensors too")
    parser.add_argument("--only", choices=["load", "speed", "memory"], help="default: all three")
    parser.add_argument("--texts", type=Path, help="a text file of your own, one text a line (default: the corpus)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the tables (default: %(default)s)")
    options = parser.parse_args()
    sample = texts(options.texts)
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        folders = {"torch": options.model, "fp32": options.model, **int8_forms(options.model, Path(work))}
        studies = {"speed": lambda: speed(folders, options.model, sample), "load": lambda: load(folders, sample)}
        studies["memory"] = lambda: memory(folders, sample)
        for name, study in studies.items():
            if options.only in (None, name):
                study().to_csv(options.output / f"serving_{name}.csv", index=False)


if __name__ == "__main__":
    main()
