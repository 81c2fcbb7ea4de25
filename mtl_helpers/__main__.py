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
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib import import_module
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .console import FIRST, expanded, guarded, say, write  # other modules when needed: some take seconds

if TYPE_CHECKING:
    import pandas as pd

    from .multitask import MultiTaskModel

CHUNK = 1024  # lines that predict reads before it writes
RUN = "training.json"  # in the model's folder: the SHA-256 of the file that it was trained on, digests of its texts

SETTINGS = {  # those of TrainingConfig that can be given, with its defaults
    "epochs": (int, 5, "passes over the training rows"),
    "learning_rate": (float, 2e-4, "of the encoder, at its peak"),
    "head_learning_rate": (float, 1e-3, "of the heads, at its peak"),
    "seed": (int, 0, "of the heads' first weights, the order of the batches and dropout"),
}
# More commands, {name: (module, help)}: each module has ABOUT, add_arguments(parser) and run(options).
MODULES = {
    "export": ("export", "write a model as ONNX, to serve it"),
    "serve": ("service", "serve a model over HTTP"),
}

PROGRAM = """Train one model for several labelling tasks at once on a CSV of yours, score it, use it.

The CSV: UTF-8, commas, a header; a column `text`, a column for each task, and one row per text:
  text,topic,entities
  "Ana Duarte flew to Oslo.",business,"[[0, 10, ""PER""], [19, 23, ""LOC""]]"
  Great match!,sports,
A sentence task has one label per text; a token task has spans in JSON, [[start, end, "LABEL"], ...] in
characters of the text, [] where there are none. An empty cell means: not labelled for this task. A column
`split` (train, validation, test) is kept to; without one, training divides the rows 70/10/20, always in the
same way."""
TRAIN = """Train a model on the rows of the split train, choose the best epoch on validation, score it on test.

The folder DIR gets the model, history.csv, evaluation.csv (the printed table) and checkpoints/, from which the same
command goes on after an interruption. Without --task and --token-task, DATA.csv needs a column for at least one of
the course's tasks: topic, sentence_type, sentiment, entities.

  python -m mtl_helpers train my.csv --output model --task stars=1,2,3,4,5 --task shop --token-task food=DISH,DRINK"""
EVALUATE = """Score a model on the labelled rows of a CSV, each score with its 95 % bootstrap interval (low, high).

  python -m mtl_helpers evaluate model new.csv --split all --output scores.csv"""
PREDICT = """Label texts: one row per text, in order, on standard output.

Without a TEXT, standard input is read: UTF-8, one text per line (no CSV); an empty line is a text too.

  python -m mtl_helpers predict model --format jsonl < lines.txt > out.jsonl"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong usage raises argparse's SystemExit with code 2."""
    parser = make_parser(sys.argv[1:] if arguments is None else arguments)
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


def make_parser(arguments: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The parser of the program and its commands."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m mtl_helpers", description=PROGRAM, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", title="commands", metavar="COMMAND")

    def command(name: str, run: Callable, description: str | None, short: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=short, description=description, formatter_class=raw)
        sub.set_defaults(run=run, parser=sub)
        return sub

    add = command("train", run_train, TRAIN, "train a model on a CSV and save it").add_argument
    add("data", metavar="DATA.csv", type=expanded, help="labelled texts")
    add("--output", metavar="DIR", type=destination, required=True, help="folder for the model; made if it isn't there")
    text = "a column with one label per text; without labels, the column's values (2 to 100); repeatable"
    add("--task", metavar="NAME[=LABEL,...]", action="append", default=[], help=text)
    text = "a column with spans of these types, in JSON; repeatable"
    add("--token-task", metavar="NAME=TYPE,...", action="append", default=[], help=text)
    add("--task-weight", metavar="NAME=X", type=weight, action="append", default=[], help="factor of a task's loss")
    for name, (kind, default, text) in SETTINGS.items():
        text, metavar = f"{text} (default: %(default)s)", "N" if kind is int else "X"
        add(f"--{name.replace('_', '-')}", metavar=metavar, type=kind, default=default, help=text)
    text = "a Hugging Face encoder: a folder or a name on the hub (default: %(default)s, which is installed here)"
    add("--backbone", metavar="NAME_OR_DIR", default="all-MiniLM-L6-v2", help=text)

    add = command("evaluate", run_evaluate, EVALUATE, "score a model on a CSV").add_argument
    add("model", metavar="DIR", type=expanded, help="folder that train wrote")
    add("data", metavar="DATA.csv", type=expanded, help="labelled texts")
    text = "rows to score (default: test; all if the file has no column split and isn't the one trained on)"
    add("--split", choices=["train", "validation", "test", "all"], help=text)
    text = "write the table there too (default: only print it)"
    add("--output", metavar="FILE.csv", type=destination, help=text)

    add = command("predict", run_predict, PREDICT, "label texts with a model").add_argument
    add("model", metavar="DIR", type=expanded, help="folder that train wrote")
    add("texts", metavar="TEXT", nargs="*", help="texts to label (default: the lines of standard input)")
    text = "csv: with a header; jsonl: one JSON object per line (default: %(default)s)"
    add("--format", choices=["csv", "jsonl"], default="csv", help=text)
    text = "label a Parquet file with a column text instead of TEXTs, and write the answers there; goes on where it was"
    add("--output", metavar="FILE.parquet", help=text)

    for name, (place, short) in MODULES.items():
        if name in arguments:  # a module that isn't asked for isn't loaded: some take seconds
            module = import_module(f".{place}", __package__)
            command(name, module.run, module.ABOUT, short)
            module.add_arguments(commands.choices[name])
        else:
            commands.add_parser(name, help=short)
    return parser


def destination(text: str) -> Path:
    """Where to write. ValueError for an empty path, as of a shell variable that isn't set."""
    if not text:
        raise ValueError(text)
    return expanded(text)


def weight(text: str) -> tuple[str, float]:
    """Read NAME=X."""
    name, _, factor = text.partition("=")
    return name, float(factor)


# ---------------------------------------------------------------------------------------- the three commands


def run_train(options: argparse.Namespace) -> None:
    """Train, save, score."""
    import torch

    from .encoder import SentenceEncoder
    from .folders import sha256_of
    from .multitask import MultiTaskModel
    from .own_tasks import declare, find_tasks, read_splits
    from .runtime import device
    from .settings import TrainingConfig
    from .training import fit

    try:
        declared = declare(options.task, options.token_task)
        settings = {name: getattr(options, name) for name in SETTINGS}
        config = TrainingConfig(**settings, task_weights=dict(options.task_weight))
    except ValueError as error:
        options.parser.error(str(error))
    path, output = options.data, options.output
    tasks = find_tasks(path, declared)
    splits, data = read_splits(path, tasks), sha256_of(path)
    torch.manual_seed(options.seed)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(os.path.expanduser(options.backbone)), tasks).to(device())
    names = "; ".join(f"{task.name}: {', '.join(task.labels)}" for task in tasks)
    say(f"training on {len(splits['train'])} texts ({model.encoder.backbone.device}); {names}")
    steps = [path.name.partition("-step-")[2] for path in (output / "checkpoints").glob("*-step-*.pt")]
    if steps:  # `fit` refuses them if they don't, and says why
        say(f"going on from step {int(max(steps)[:8])}, if the checkpoints in {output / 'checkpoints'} are of this run")
    try:
        history = fit(model, splits["train"], splits["validation"], config, output / "checkpoints")
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{str(error) or 'stopped'} (here: give the same command again)") from error
    if not FIRST:
        return
    model.save_pretrained(output)
    texts = [digest(text) for text in splits["train"]["text"]]
    write(output / RUN, json.dumps({"data": data, "texts": sorted(set(texts))}) + "\n")
    write(output / "history.csv", history.to_frame().to_csv(index=False))
    say(f"saved in {output}: the weights of epoch {history.best_epoch} of {len(history.scores)}, best on validation")
    if splits["test"].reindex(columns=[task.name for task in tasks]).notna().any(axis=None):
        score(model, splits["test"], "split test", output / "evaluation.csv")
    else:
        say(f"nothing to score it on: {path} has no labelled row in the split test")


def run_evaluate(options: argparse.Namespace) -> None:
    """Score a saved model."""
    from .corpus import assign_splits, read_corpus
    from .folders import read_json, sha256_of
    from .multitask import MultiTaskModel
    from .runtime import device
    from .tables import CorpusError

    model, path = MultiTaskModel.from_pretrained(options.model).to(device()), options.data
    if options.output and options.output.exists() and options.output.samefile(path):
        raise ValueError(f"{path}: is the file with the labels, which would be lost; write the scores elsewhere")
    rows, split, why = read_corpus(path, model.tasks), options.split or "test", ""
    if "split" not in rows:
        rows["split"] = assign_splits(rows, model.tasks)
        if options.split is None:
            note = read_json(options.model / RUN) if (options.model / RUN).is_file() else {}
            trained_on = note.get("data") == sha256_of(path)
            known = set() if trained_on else {digest(text) for text in rows["text"]} & set(note.get("texts", ()))
            if known:
                say(
                    f"warning: {len(known)} of these texts were trained on, which makes scores too good; leave them out"
                )
            split = "test" if trained_on else "all"
            why = ": the part of this file that training kept aside" if trained_on else ": the file has no column split"
    rows = rows if split == "all" else rows[rows["split"] == split].reset_index(drop=True)
    if not len(rows):
        raise CorpusError(f"{path}: found no row with the split {split}; --split all takes every row")
    score(model, rows, f"split {split}{why}", options.output)


def run_predict(options: argparse.Namespace) -> None:
    """Label texts, some at a time."""
    if options.output is not None:
        from . import predictor

        return predictor.run(options)
    from .multitask import MultiTaskModel
    from .runtime import device

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


# ------------------------------------------------------------------------------------------ what they consist of


def score(model: "MultiTaskModel", rows: "pd.DataFrame", which: str, output: Path | None) -> None:
    """Print the table of `evaluate` and, if wanted, write it as CSV."""
    from .evaluation import evaluate

    say(f"scoring {len(rows)} texts ({which})")
    table = evaluate(model, rows)
    print(table.to_string(index=False, float_format="{:.3f}".format))
    if output is not None:
        write(output, table.to_csv(index=False))


def digest(text: str) -> str:
    """Twelve digits that tell a text from others."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:12]


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


if __name__ == "__main__":
    sys.exit(main())
