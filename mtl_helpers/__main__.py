"""The command line: train on a CSV, evaluate, predict. `python -m mtl_helpers --help` says how.

Results go to standard output, everything else (what is being done, warnings, errors, progress) to standard error.
Exit codes: 0 fine, 1 something wrong with the data or the model, 2 wrong usage, 130 stopped by Ctrl-C.
"""

import argparse
import csv
import hashlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import pandas as pd
import torch

from . import distributed, export, predictor, service
from .corpus import SPLITS, CorpusError, load_corpus, read_rows
from .encoder import SentenceEncoder, read_json, write_json
from .evaluation import evaluate
from .minilm import sha256_of
from .multitask import MultiTaskModel
from .tasks import TASKS, Task
from .training import TrainingConfig, fit

MOST_LABELS = 100  # a column with more different values is taken for free text
CHUNK = 1024  # lines that predict reads before it writes
RUN = "training.json"  # in the model's folder: hashes of the data and of the weights that training started from

SETTINGS = {  # those of TrainingConfig that can be given
    "epochs": (int, "passes over the training rows"),
    "learning_rate": (float, "of the encoder, at its peak"),
    "head_learning_rate": (float, "of the heads, at its peak"),
    "seed": (int, "of the heads' first weights, the order of the batches and dropout"),
}

PROGRAM = """Train one model for several labelling tasks at once on a CSV of yours, score it, use it.

The CSV: UTF-8, commas, a header; a column `text`, a column for each task, and one row per text:
  text,topic,entities
  "Ana Duarte flew to Oslo.",business,"[[0, 10, ""PER""], [19, 23, ""LOC""]]"
  Great match!,sports,
A sentence task has one label per text; a token task has spans in JSON, [[start, end, "LABEL"], ...] in
characters of the text, [] where there are none. An empty cell means: not labelled for this task. A column
`split` (train, validation, test) is kept to; without one, training divides the rows 70/10/20, always in the
same way.

Examples:
  python -m mtl_helpers train my.csv --output model
  python -m mtl_helpers predict model 'Could Ana Duarte send the minutes?'

More on a command: python -m mtl_helpers COMMAND --help"""
TRAIN = """Train a model on the rows of the split train, choose the best epoch on validation, score it on test.

The folder DIR gets the model, history.csv (losses and scores by epoch), evaluation.csv (the printed table) and
checkpoints/. The same command again goes on from the last checkpoint, after Ctrl-C for instance, and ends with
the result that it would have had without the interruption. Delete checkpoints/ when you are done.

Without --task and --token-task, DATA.csv needs a column for at least one of the course's tasks: topic,
sentence_type, sentiment, entities. For all other columns: python -m mtl_helpers --help.

Examples:
  python -m mtl_helpers train data/sentences.csv --output model --epochs 2
  python -m mtl_helpers train my.csv --output model --task stars=1,2,3,4,5 --task shop --token-task food=DISH,DRINK"""
EVALUATE = """Score a model on the labelled rows of a CSV, each score with its 95 % bootstrap interval (low, high).

Sentence tasks: accuracy and macro-F1. Token tasks: precision, recall and F1 of exact spans. DATA.csv looks as
for training: a column text and one for each task of the model; more in python -m mtl_helpers --help.

Examples:
  python -m mtl_helpers evaluate model data/sentences.csv
  python -m mtl_helpers evaluate model new.csv --split all --output scores.csv"""
PREDICT = """Label texts: one row per text, in order, on standard output.

For a sentence task the label and its probability, for a token task the spans [[start, end, "LABEL", "surface"],
...] in characters of the text. Without a TEXT, standard input is read: UTF-8, one text per line (no CSV); an
empty line is a text too, so that line n of the input is row n of the output.

Examples:
  python -m mtl_helpers predict model 'Behold!' 'Keep your ticket.'
  python -m mtl_helpers predict model --format jsonl < lines.txt > out.jsonl"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage raises argparse's SystemExit with code 2."""
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if options.command is None:
        parser.print_help(sys.stderr)
        return 2
    # argparse takes no texts behind an option ("predict DIR --format csv TEXT"): they end up in the rest.
    end = rest.index("--") if "--" in rest else len(rest)
    unknown = [text for text in rest[:end] if text.startswith("-") and " " not in text]
    if rest and (unknown or options.command != "predict"):
        options.parser.error(f"unrecognized arguments: {' '.join(unknown or rest)}")
    if rest:
        options.texts += rest[:end] + rest[end + 1 :]
    return guarded(lambda: options.run(options))


def make_parser() -> argparse.ArgumentParser:
    """The parser of the program and its three commands."""
    raw, defaults = argparse.RawDescriptionHelpFormatter, TrainingConfig()
    parser = argparse.ArgumentParser("python -m mtl_helpers", description=PROGRAM, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    def command(name: str, run: Callable, description: str, short: str) -> Callable:
        sub = commands.add_parser(name, help=short, description=description, formatter_class=raw)
        sub.set_defaults(run=run, parser=sub)
        return sub.add_argument

    add = command("train", run_train, TRAIN, "train a model on a CSV and save it")
    add("data", metavar="DATA.csv", help="labelled texts")
    add("--output", metavar="DIR", required=True, help="folder for the model; made if it isn't there")
    text = (
        f"a column with one label per text; without labels here, the column's values (2 to {MOST_LABELS}); repeatable"
    )
    add("--task", metavar="NAME[=LABEL,...]", action="append", default=[], help=text)
    text = "a column with spans of these types, in JSON; repeatable"
    add("--token-task", metavar="NAME=TYPE,...", action="append", default=[], help=text)
    for name, (kind, text) in SETTINGS.items():
        default, text = getattr(defaults, name), f"{text} (default: %(default)s)"
        add(f"--{name.replace('_', '-')}", metavar="N" if kind is int else "X", type=kind, default=default, help=text)
    text = "a Hugging Face encoder: a folder or a name on the hub (default: %(default)s, which is installed here)"
    add("--backbone", metavar="NAME_OR_DIR", default="all-MiniLM-L6-v2", help=text)

    add = command("evaluate", run_evaluate, EVALUATE, "score a model on a CSV")
    add("model", metavar="DIR", help="folder that train wrote")
    add("data", metavar="DATA.csv", help="labelled texts")
    text = "rows to score (default: test; all if the file has no column split and isn't the one trained on)"
    add("--split", choices=[*SPLITS, "all"], help=text)
    add("--output", metavar="FILE.csv", help="write the table there too (default: only print it)")

    add = command("predict", run_predict, PREDICT, "label texts with a model")
    add("model", metavar="DIR", help="folder that train wrote")
    add("texts", metavar="TEXT", nargs="*", help="texts to label (default: the lines of standard input)")
    text = "csv: with a header; jsonl: one JSON object per line (default: %(default)s)"
    add("--format", choices=["csv", "jsonl"], default="csv", help=text)
    predictor.add_arguments(add.__self__)

    export.add_arguments(command("export", export.run, export.ABOUT, "write a model as ONNX, to serve it").__self__)
    service.add_arguments(command("serve", service.run, service.ABOUT, "serve a model over HTTP").__self__)
    return parser


def guarded(command: Callable[[], None], *more: type[Exception]) -> int:
    """Run it; returns the exit code. Errors and warnings become one message each on standard error.

    Args:
        more: kinds of errors, besides those in data and models, that deserve no traceback.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {' '.join(str(message).split())}")
        try:
            command()
            sys.stdout.flush()
        except BrokenPipeError:  # whoever reads, `head` for instance, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except KeyboardInterrupt as error:
            say(str(error) or "stopped")
            return 130
        except (ValueError, OSError, FloatingPointError, *more) as error:
            say(f"error: {error}")
            return 1
    return 0


def say(text: str) -> None:
    """A message for the user, beside the results."""
    if distributed.rank():
        return
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------- the three commands


def run_train(options: argparse.Namespace) -> None:
    """Train, save, score."""
    distributed.start()
    try:
        declared = [declare(text, "sentence") for text in options.task]
        declared += [declare(text, "token") for text in options.token_task]
        config = TrainingConfig(**{name: getattr(options, name) for name in SETTINGS})
    except ValueError as error:
        options.parser.error(str(error))
    path, output = Path(options.data), Path(options.output)
    tasks = find_tasks(path, declared)
    parts = read_splits(path, tasks)
    torch.manual_seed(options.seed)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(options.backbone), tasks)
    run = start_or_go_on(output, path, model)
    model.to(device())
    names = "; ".join(f"{task.name}: {', '.join(task.labels)}" for task in tasks)
    say(f"training on {len(parts['train'])} texts ({model.encoder.backbone.device}); {names}")
    try:
        history = fit(model, parts["train"], parts["validation"], config, output / "checkpoints")
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{str(error) or 'stopped'} (here: give the same command again)") from error
    if distributed.rank():
        return
    model.save_pretrained(output)
    write_json(output / RUN, run)
    history.to_frame().to_csv(output / "history.csv", index=False)
    say(f"saved in {output}: the weights of epoch {history.best_epoch} of {len(history.scores)}, best on validation")
    if parts["test"].reindex(columns=[task.name for task in tasks]).notna().any(axis=None):
        score(model, parts["test"], "split test", output / "evaluation.csv")
    else:
        say(f"nothing to score it on: {path} has no labelled row in the split test")


def run_evaluate(options: argparse.Namespace) -> None:
    """Score a saved model."""
    model, path = MultiTaskModel.from_pretrained(options.model).to(device()), Path(options.data)
    rows, split, why = load_corpus(path, tasks=model.tasks), options.split or "test", ""
    if options.split is None and "split" not in read_rows(path)[0]:
        trained_on = read_run(Path(options.model)).get("data") == sha256_of(path)
        split = "test" if trained_on else "all"
        why = ": the part of this file that training kept aside" if trained_on else ": the file has no column split"
    rows = rows if split == "all" else rows[rows["split"] == split].reset_index(drop=True)
    if not len(rows):
        raise CorpusError(f"{path}: found no row with the split {split}; --split all takes every row")
    score(model, rows, f"split {split}{why}", options.output)


def run_predict(options: argparse.Namespace) -> None:
    """Label texts, some at a time."""
    if options.output:
        return predictor.run(options)
    model = MultiTaskModel.from_pretrained(options.model).to(device())
    texts = iter(options.texts) if options.texts else read_lines()
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(encoding="utf-8", newline="\n")
    if options.format == "csv":
        print(csv_line(model.predict([]).columns))
    while chunk := list(islice(texts, CHUNK)):
        for row in model.predict(chunk).to_dict("records"):
            print(csv_line(row.values()) if options.format == "csv" else json_line(row))
        sys.stdout.flush()


# ------------------------------------------------------------------------------------------------ their parts


def declare(text: str, level: Literal["sentence", "token"]) -> tuple[str, tuple[str, ...] | None, str]:
    """Read NAME=LABEL,LABEL,... or, for a sentence task, NAME. Returns name, labels (None: to be looked up), level."""
    name, given, labels = text.partition("=")
    labels = tuple(label.strip() for label in labels.split(",")) if given else None
    if labels is None and level == "token":
        raise ValueError(f"argument --token-task: {text!r} names no types, expected NAME=TYPE,TYPE")
    Task(name, ("a", "b") if labels is None else labels, level)  # says what is wrong with the name or the labels
    return name, labels, level


def find_tasks(path: Path, declared: list[tuple[str, tuple[str, ...] | None, str]]) -> list[Task]:
    """The tasks of `declare`, or those of the course that the file has.

    Raises CorpusError for a column that isn't there or whose values are no labels.
    """
    header, rows, _ = read_rows(path)
    tasks = []
    for name, labels, level in declared:
        if name not in header:
            raise CorpusError(f"{path}: found no column {name} among {', '.join(header)}, expected one for this task")
        if labels is None:
            column = header.index(name)
            labels = sorted({cells[column] for _, cells in rows if cells[column].strip()})
            if not 2 <= len(labels) <= MOST_LABELS:
                what = f"found {len(labels)} different values, expected 2 to {MOST_LABELS} labels"
                raise CorpusError(f"{path}, column {name}: {what}")
        tasks.append(Task(name, labels, level))
    return tasks or [task for task in TASKS if task.name in header] or list(TASKS)


def read_splits(path: Path, tasks: list[Task]) -> dict[str, pd.DataFrame]:
    """{split: rows}; raises CorpusError if there is nothing to train on or to choose the best epoch on."""
    try:
        rows = load_corpus(path, tasks=tasks)
    except CorpusError as error:
        hint = "\n  --task NAME declares a column of your own" if "no column for any task" in str(error) else ""
        raise CorpusError(f"{error}{hint}") from error
    parts = {name: rows[rows["split"] == name].reset_index(drop=True) for name in SPLITS}
    for name in ("train", "validation"):
        if not len(parts[name]):
            remedy = "without a column split, five different texts or more are divided for you"
            raise CorpusError(f"{path}: found no row for {name} among {len(rows)}, expected some; {remedy}")
    return parts


def start_or_go_on(output: Path, path: Path, model: MultiTaskModel) -> dict:
    """Note in the folder, and return, what the run starts from; see that checkpoints there started from the same.

    `fit` compares settings, data and shapes; two backbones of the same shape differ in their weights alone.
    """
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.numpy().tobytes())
    now, before = {"data": sha256_of(path), "weights": digest.hexdigest()}, read_run(output)
    steps = sorted((output / "checkpoints").glob("step-*.safetensors"))
    if steps and before.get("weights", now["weights"]) != now["weights"]:
        what = "belong to a run that started from other weights (another --backbone or --seed)"
        raise ValueError(f"{output / 'checkpoints'}: they {what}; delete them, or give another --output")
    output.mkdir(parents=True, exist_ok=True)
    if not steps and not distributed.rank():
        write_json(output / RUN, now)
    elif steps:
        say(f"going on from step {int(steps[-1].stem.removeprefix('step-'))} ({steps[-1]})")
    return now


def read_run(folder: Path) -> dict:
    """What `run_train` noted there; empty if nothing."""
    return read_json(folder / RUN) if (folder / RUN).is_file() else {}


def score(model: MultiTaskModel, rows: pd.DataFrame, which: str, output: str | Path | None) -> None:
    """Print the table of `evaluate` and, if wanted, write it as CSV."""
    say(f"scoring {len(rows)} texts ({which})")
    table = evaluate(model, rows)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if output is not None:
        table.to_csv(output, index=False)


def read_lines() -> Iterator[str]:
    """Lines of standard input without their ends; nothing but a line feed ends a line."""
    if sys.stdin.isatty():
        say("reading texts from the keyboard, one per line; Ctrl-D ends")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            byte = line[error.start]
            raise ValueError(f"standard input, line {number}: found byte 0x{byte:02x}, expected UTF-8") from error


def csv_line(values: Iterable) -> str:
    """A row of CSV: numbers with 4 digits, spans in JSON."""
    cells = [f"{v:.4f}" if isinstance(v, float) else v for v in values]
    cells = [json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell for cell in cells]
    csv.writer(line := io.StringIO(newline="")).writerow(cells)  # only with its \r\n are texts with a \r put in quotes
    return line.getvalue().removesuffix("\r\n")


def json_line(row: dict) -> str:
    """A row as a JSON object, numbers with 4 digits."""
    return json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()}, ensure_ascii=False)


def device() -> torch.device:
    """The accelerator, or the CPU if there is none."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


if __name__ == "__main__":
    sys.exit(main())
