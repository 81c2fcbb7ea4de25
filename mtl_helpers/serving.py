"""An exported model at work: texts in, labels and spans out, without torch or transformers.

Needs what `export` wrote (model.onnx or model.int8.onnx, tokenizer.json, tasks.json, serving.json) and the packages
numpy, tokenizers and onnxruntime, so that a server starts in a second and a container is small.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Encoding, Tokenizer

from .folders import check_sha256, read_json
from .tasks import Task, trim_offsets

SERVING = "serving.json"  # what a server has to know: max_length, padding, the gate's table, hashes
FILES = {"fp32": "model.onnx", "int8": "model.int8.onnx"}
MAX_TOKENS = 1024  # of a batch, padding included


class ServedModel:
    """A folder that `export` wrote, loaded for inference on a CPU. Several threads may use it at once.

    Args:
        folder: holds the files above.
        precision: "fp32", "int8", or "auto": int8 if the folder has it.
        threads: of one inference. Several inferences of one thread do more work than one of several.

    Raises:
        FileNotFoundError: a file is missing. Says what writes it.
        ValueError: an unknown precision; files of different saves (their SHA-256 doesn't fit).
    """

    def __init__(self, folder: str | Path, precision: str = "auto", threads: int = 1) -> None:
        folder = Path(folder)
        if not (folder / SERVING).is_file():
            remedy = f"write it with: python -m mtl_helpers export {folder}"
            raise FileNotFoundError(f"{folder / SERVING}: no such file, expected an exported model; {remedy}")
        if precision not in ("auto", *FILES):
            raise ValueError(f"precision is {precision!r}, expected 'auto', 'fp32' or 'int8'")
        self.settings = read_json(folder / SERVING)
        try:
            hashes = dict(self.settings["sha256"])
            length, side = int(self.settings["max_length"]), self.settings.get("truncation_side", "right")
            self.pad = int(self.settings["pad_id"])
        except (KeyError, TypeError, ValueError) as error:
            remedy = f"write it anew with: python -m mtl_helpers export {folder}"
            raise ValueError(f"{folder / SERVING}: not as export writes it ({error!r}); {remedy}") from error
        self.precision = ("int8" if FILES["int8"] in hashes else "fp32") if precision == "auto" else precision
        file = FILES[self.precision]
        if file not in hashes:
            remedy = f"write it with: python -m mtl_helpers export {folder} --int8 DATA.csv"
            raise FileNotFoundError(f"{folder / file}: no such file; {remedy}")
        for name in ("tokenizer.json", "tasks.json", file):
            check_sha256(folder / name, hashes[name])
        self.version = hashes[file][:12]
        self.tasks = tuple(Task(**task) for task in read_json(folder / "tasks.json")["tasks"])
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(length, direction=side)
        self.session = open_session(folder / file, threads)

    def predict(self, texts: Sequence[str], each: Callable = map) -> tuple[list[dict[str, Any]], list[bool]]:
        """Answer every task for every text.

        Args:
            texts: any strings, empty ones too.
            each: applies a function to all batches: `map`, or `pool.map` of a ThreadPoolExecutor.

        Returns:
            For each text {task: {"label", "probability"}}, for token tasks {task: [{"start", "end", "label", "surface",
            "probability"}, ...]} in characters of the text; a span's probability is the lowest of its tokens'. And for
            each text whether it was cut after `max_length` tokens.

        Raises:
            TypeError, ValueError: no list of strings; half a surrogate pair in a string.
        """
        texts = texts if isinstance(texts, str) else list(texts)  # of any kind, to be read twice and by position
        encodings = self.tokenize(texts)
        answers: list[dict[str, Any]] = [{} for _ in encodings]
        for rows, logits in self.logits(encodings, each):
            for task, scores in zip(self.tasks, logits, strict=True):
                likely = 1 / np.exp(scores - scores.max(-1, keepdims=True)).sum(-1)  # softmax of the best class
                for i, code, probability in zip(rows, scores.argmax(-1).tolist(), likely.tolist(), strict=True):
                    if task.level == "token":
                        answers[i][task.name] = _spans(task, texts[i], encodings[i], code, probability)
                    else:
                        answers[i][task.name] = {"label": task.labels[code], "probability": round(probability, 6)}
        return answers, [bool(encoding.overflowing) for encoding in encodings]

    def tokenize(self, texts: Sequence[str]) -> list[Encoding]:
        """Tokens of each text, cut after `max_length`; errors as in `predict`."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("expected a list of strings")
        for i, text in enumerate(texts):
            if any("\ud800" <= character <= "\udfff" for character in ([] if text.isascii() else text)):
                raise ValueError(f"text {i} holds half a surrogate pair, expected valid Unicode")
        return self.tokenizer.encode_batch(list(texts))

    def logits(self, encodings: Sequence[Encoding], each: Callable = map) -> Iterator[tuple[list[int], list]]:
        """Batches of positions, longest texts first, each with every task's scores: (B, C), of a token task (B, T, C).

        int8 takes its scale from all numbers of a batch, so that an answer depends on its batch mates: it gets none.
        """
        order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]))
        batches: list[list[int]] = []
        for i in order:
            if not batches or (len(batches[-1]) + 1) * len(encodings[batches[-1][0]]) > MAX_TOKENS:
                batches.append([])
            batches[-1].append(i)
        batches = batches if self.precision == "fp32" else [[i] for i in order]
        yield from zip(batches, each(lambda rows: self._run([encodings[i].ids for i in rows]), batches), strict=True)

    def _run(self, lines: list[list[int]]) -> list[np.ndarray]:
        ids = np.full((len(lines), max(map(len, lines))), self.pad, np.int64)
        mask = np.zeros_like(ids)
        for row, line in enumerate(lines):
            ids[row, : len(line)], mask[row, : len(line)] = line, 1
        names = [f"logits.{task.name}" for task in self.tasks]
        return self.session.run(names, {"input_ids": ids, "attention_mask": mask})


def _spans(task: Task, text: str, encoding: Encoding, codes: list[int], probabilities: list[float]) -> list[dict]:
    offsets, spans = trim_offsets(text, encoding.offsets), []
    for start, end, label in task.decode(codes[: len(offsets)], offsets):  # behind them is padding
        inside = [p for (a, b), p in zip(offsets, probabilities, strict=False) if start <= a < b <= end]
        where = {"start": start, "end": end, "label": label, "surface": text[start:end]}
        spans.append({**where, "probability": round(min(inside), 6)})
    return spans


def open_session(path: Path, threads: int) -> Any:
    """An onnxruntime session on the CPU that sends nothing home."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported; from 1.31 on it would send some
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.enable_mem_pattern = False  # a plan of memory for each shape: texts have too many of them
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def cores(cgroup: str = "/sys/fs/cgroup") -> int:
    """Cores that this process may use: its affinity and a container's quota, which os.cpu_count leaves out."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for names in (["cpu.max"], ["cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us"]):  # of cgroups version 2 and 1
        files = [Path(cgroup) / name for name in names]
        if all(file.is_file() for file in files):
            quota, period = " ".join(file.read_text() for file in files).split()
            limits += [int(quota) // int(period)] if quota not in ("max", "-1") else []
    return max(1, min(limits))
