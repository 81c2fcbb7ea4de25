"""How fast the package is beside what one would use otherwise: `make bench`, `python -m experiments.benchmark encode`.

All contenders run in one process and take turns (A, B, A, B, ...) after a warm-up each, so that a machine that slows
down slows down all of them. A ratio is taken turn by turn; the table shows the median, the lowest and the highest.
"""

import argparse
import copy
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import sentence_transformers
import torch
import transformers
from torch import Tensor, nn

from mtl_helpers.__main__ import guarded
from mtl_helpers.backbones import find_model
from mtl_helpers.corpus import load_corpus
from mtl_helpers.encoder import SentenceEncoder
from mtl_helpers.evaluation import validate
from mtl_helpers.multitask import MultiTaskModel
from mtl_helpers.progress import progress
from mtl_helpers.runtime import bfloat16_is_fast, device
from mtl_helpers.settings import TrainingConfig
from mtl_helpers.tasks import TASKS
from mtl_helpers.training import epoch_batches, fit

from .weights import find

BATCH_SIZES = (8, 16, 32, 64, 128)  # for sentence-transformers, whose default is 32
COLUMNS = ["contender", "seconds", "sentences_per_second", "ratio", "lowest", "highest", "against"]
HELD_OUT = 8  # validation sentences, so few that validating at the end of the epoch doesn't count


def seconds(work: Callable[[], object]) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def race(contenders: dict[str, Callable[[], float]], repeats: int) -> pd.DataFrame:
    """Let the contenders, functions that do the work and return its seconds, take turns.

    Returns:
        The seconds: a column per contender and a row per turn, without the first, which is to warm up.
    """
    if repeats < 1:
        raise ValueError(f"repeats is {repeats}, expected 1 or more")
    turns = progress(range(repeats + 1), "turns")
    return pd.DataFrame([{name: run() for name, run in contenders.items()} for _ in turns][1:])


def compare(times: pd.DataFrame, against: dict[str, str], sentences: int) -> pd.DataFrame:
    """Summarise what `race` measured.

    Args:
        times: as from `race`.
        against: {contender: the one it is compared with}.
        sentences: how many each handled per turn.

    Returns:
        One row per contender: contender, seconds (median), sentences_per_second, ratio (how many times as fast as
        the one it is compared with: median over the turns), lowest, highest (ratio of a single turn), against.
    """
    rows = []
    for name in times:
        ratios, median = times[against.get(name, name)] / times[name], times[name].median()
        spread = ratios.median(), ratios.min(), ratios.max()
        rows.append([name, median, sentences / median, *spread, against.get(name, "")])
    return pd.DataFrame(rows, columns=COLUMNS)


def take(sentences: int, split: str | None = None) -> pd.DataFrame:
    """So many rows of the corpus, always the same."""
    rows = load_corpus(split=split)
    if not 1 <= sentences <= len(rows):
        raise ValueError(f"sentences is {sentences}, expected 1 to {len(rows)}, as many as the corpus has for this")
    return rows.sample(sentences, random_state=0).reset_index(drop=True)


def precisions() -> list[str]:
    """float32, and bfloat16 where the device is fast at it."""
    return ["float32", "bfloat16"] if bfloat16_is_fast(device()) else ["float32"]


# ------------------------------------------------------------------------------------------- the three races


def encode(sentences: int = 1000, repeats: int = 5, encoder: str | Path | None = None) -> pd.DataFrame:
    """`SentenceEncoder.encode` against sentence-transformers: the same weights, the same sentences.

    Each of BATCH_SIZES runs with sentence-transformers; everything is compared with the one that is fastest here.
    `difference`: largest distance of a number in our vectors from sentence-transformers'.
    """
    texts = take(sentences)["text"].tolist()
    ours = SentenceEncoder.from_pretrained(encoder).to(device())
    theirs = sentence_transformers.SentenceTransformer(str(find_model(encoder)), device=str(device()))
    vectors = torch.from_numpy(theirs.encode(texts, show_progress_bar=False))
    encode_in = partial(theirs.encode, texts, show_progress_bar=False)
    runs = {f"sentence-transformers, batches of {size}": partial(encode_in, batch_size=size) for size in BATCH_SIZES}
    libraries = list(runs)
    runs |= {f"ours, {precision}": partial(ours.encode, texts, precision) for precision in precisions()}
    times = race({name: partial(seconds, run) for name, run in runs.items()}, repeats)
    best = times[libraries].median().idxmin()
    table = compare(times, {name: best for name in runs if name != best}, sentences)
    gaps = {f"ours, {p}": (ours.encode(texts, p) - vectors).abs().max().item() for p in precisions()}
    return table.assign(difference=table["contender"].map(gaps).fillna(0.0))


def predict(sentences: int = 500, repeats: int = 5, encoder: str | Path | None = None) -> pd.DataFrame:
    """One model with four tasks against four models with one task each, in turn: the same code and the same heads."""
    texts = take(sentences)["text"].tolist()
    torch.manual_seed(0)
    shared = MultiTaskModel(SentenceEncoder.from_pretrained(encoder)).to(device())
    single = [MultiTaskModel(copy.deepcopy(shared.encoder), [task]).to(device()) for task in TASKS]
    for model, task in zip(single, TASKS, strict=True):
        model.heads[task.name].load_state_dict(shared.heads[task.name].state_dict())
    contenders, against = {}, {}
    for precision in precisions():
        four, one = f"four models, {precision}", f"one model, {precision}"
        contenders[four] = lambda precision=precision: seconds(lambda: [m.predict(texts, precision) for m in single])
        contenders[one] = lambda precision=precision: seconds(lambda: shared.predict(texts, precision))
        against[one] = four
    return compare(race(contenders, repeats), against, sentences)


def training(sentences: int = 640, repeats: int = 3, encoder: str | Path | None = None) -> pd.DataFrame:
    """One epoch of `fit` against transformers.Trainer at its defaults: the same model, sentences and loss.

    Both tokenise, make as many passes over as many sentences, and take about as many sentences per batch. `passes`:
    sentences that went through the backbone in training mode; `loss_before`, `loss_after`: sum over the tasks on (at
    most 200 of) the sentences, without dropout.

    Raises:
        ImportError: accelerate, which the Trainer needs, is not installed.
        RuntimeError: numbers of passes that differ, or a loss that didn't fall.
    """
    if not transformers.utils.is_accelerate_available():
        raise ImportError("transformers.Trainer, which fit is compared with, needs accelerate: pip install accelerate")
    rows, held_out = take(sentences, "train"), take(HELD_OUT, "validation")
    torch.manual_seed(0)
    fresh = MultiTaskModel(SentenceEncoder.from_pretrained(encoder)).to(device())
    examples = fresh.examples(rows)
    steps = epoch_batches(examples, TrainingConfig(epochs=1), 1)
    size, before, seen = round(sentences / len(steps)), _loss(fresh, examples), {}

    def contender(name: str, train: Callable[[MultiTaskModel], object]) -> float:
        model = copy.deepcopy(fresh)
        passes = _count_passes(model)
        time_taken = seconds(lambda: train(model))
        seen[name] = {"passes": sum(passes), "loss_before": before, "loss_after": _loss(model, examples)}
        if sum(passes) != sentences or not seen[name]["loss_after"] < before:
            raise RuntimeError(f"{name}: expected {sentences} passes and a loss below {before:.3f}, found {seen[name]}")
        return time_taken

    runs = {f"Trainer, batches of {size}": partial(train_with_trainer, rows=rows, batch_size=size)}
    if len(precisions()) > 1:
        runs[f"Trainer, batches of {size}, bf16=True"] = partial(*runs.values(), bf16=True)
    for precision in precisions():
        config = TrainingConfig(epochs=1, precision=precision)
        runs[f"fit, {precision}"] = partial(fit, train=rows, validation=held_out, config=config)
    times = race({name: partial(contender, name, train) for name, train in runs.items()}, repeats)
    first, *others = runs
    table = compare(times, dict.fromkeys(others, first), sentences)
    return table.join(pd.DataFrame.from_dict(seen, orient="index"), on="contender")


def train_with_trainer(model: MultiTaskModel, rows: pd.DataFrame, batch_size: int, **settings) -> None:
    """One epoch with transformers.Trainer; nothing but epochs, batch size and its output differ from the defaults."""
    examples = model.examples(rows)
    with tempfile.TemporaryDirectory() as folder:
        quiet = {"report_to": "none", "save_strategy": "no", "disable_tqdm": True, "use_cpu": device().type == "cpu"}
        size = {"num_train_epochs": 1, "per_device_train_batch_size": batch_size}
        arguments = transformers.TrainingArguments(folder, **size, **quiet, **settings)
        trainer = transformers.Trainer(_WithLoss(model), arguments, data_collator=model.batch, train_dataset=examples)
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()


class _WithLoss(nn.Module):
    """What the Trainer expects of a model: labels among the arguments, a loss in the result."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self.model({"input_ids": input_ids, "attention_mask": attention_mask})
        return {"loss": sum(self.model.loss(logits, labels).values())}


def _count_passes(model: MultiTaskModel) -> list[int]:
    """A list that grows by the number of sentences whenever a batch goes through the backbone in training mode."""
    passes: list[int] = []

    def count(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module.training:
            passes.append(len(kwargs["input_ids"]))

    model.encoder.backbone.register_forward_pre_hook(count, with_kwargs=True)
    return passes


def _loss(model: MultiTaskModel, examples: list[dict]) -> float:
    return sum(scores["validation_loss"] for scores in validate(model, examples[:200]).values())


# --------------------------------------------------------------------------------------------- command line


def machine() -> str:
    """Processor, threads and versions: what a timing depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = (models or [platform.processor() or platform.machine()])[0]
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    versions += f", sentence-transformers {sentence_transformers.__version__}"
    return f"{processor}, threads: {torch.get_num_threads()}, device: {device()}; {versions}"


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark and print its table; returns the exit code."""
    parser = argparse.ArgumentParser(
        "python -m experiments.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="OMP_NUM_THREADS=1 in front of the command sets the number of threads.",
    )
    races = {"training": training, "encode": encode, "predict": predict}
    what = "training: fit against transformers.Trainer; encode: against sentence-transformers; predict: one model with "
    parser.add_argument("benchmark", choices=races, help=what + "four tasks against four models")
    parser.add_argument("--repeats", metavar="N", type=int, help="turns (default: training 3, others 5)")
    text = "sentences per turn (default: training 640, encode 1000, predict 500)"
    parser.add_argument("--sentences", metavar="N", type=int, help=text)
    text = "mpnet (python -m experiments weights mpnet fetches it), or a folder (default: MiniLM)"
    parser.add_argument("--encoder", metavar="NAME", help=text)
    parser.add_argument("--output", metavar="FILE", type=Path, help="CSV that the rows are added to")
    options = parser.parse_args(arguments)
    given = {k: v for k, v in vars(options).items() if k in ("repeats", "sentences") and v is not None}

    def run() -> None:
        transformers.utils.logging.disable_progress_bar()  # of loading weights
        encoder = find() if options.encoder == "mpnet" else options.encoder
        table = races[options.benchmark](**given, encoder=encoder)
        formats = {"seconds": "{:.2f}".format, "sentences_per_second": "{:.0f}".format, "difference": "{:.0e}".format}
        print(table.to_string(index=False, formatters=formats, float_format="{:.2f}".format))
        print(machine())
        if options.output:
            about = {"benchmark": options.benchmark, "encoder": options.encoder or "MiniLM", "machine": machine()}
            rows, new = table.assign(**about)[[*about, *COLUMNS]], not options.output.is_file()
            rows.to_csv(options.output, mode="a", header=new, index=False, float_format="%.4g", lineterminator="\n")
        if options.benchmark == "training":
            print(f"The time of fit includes validating on {HELD_OUT} sentences; the Trainer validates nothing.")

    return guarded(run, ImportError, RuntimeError)


if __name__ == "__main__":
    sys.exit(main())
