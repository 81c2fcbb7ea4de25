"""A thin package behind a notebook course on multi-task learning with sentence transformers.

Read the modules in the order in which the course meets them, each imports only those before it: tasks, warn, tables,
csv_file, corpus, progress, batches, runtime, folders, minilm, backbones, modules_json, encoder, multitask, intervals,
evaluation, freezing, features, checks, sampling, balancing, imbalance, settings, history, distributed, optimization,
checkpoints, training; around them own_tasks, serving, predictor, service, export, console.
"""

import warnings
from importlib import import_module

warnings.filterwarnings("ignore", message="IProgress not found")  # tqdm, of a notebook without widgets

_HOMES = {
    "TASKS": "tasks",
    "CorpusError": "tables",
    "History": "history",
    "MultiTaskModel": "multitask",
    "SentenceEncoder": "encoder",
    "Task": "tasks",
    "TaskSampling": "sampling",
    "TrainingConfig": "settings",
    "evaluate": "evaluation",
    "fit": "training",
    "freeze": "freezing",
    "load_challenge": "corpus",
    "load_corpus": "corpus",
    "load_pairs": "corpus",
    "trainable_summary": "freezing",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> object:
    """Load a name's module when the name is first used: importing the package alone costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
