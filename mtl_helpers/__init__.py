"""A thin package behind a notebook course on multi-task learning with sentence transformers.

Read the modules in the order in which the course meets them: tasks, corpus, public, minilm, encoder, multitask,
evaluation, freezing, balancing, training, sweeps; figures holds the house style. What is served without torch: serving,
predictor, service; export writes it.
"""

from importlib import import_module

_HOMES = {
    "TASKS": "tasks",
    "CorpusError": "corpus",
    "History": "training",
    "MultiTaskModel": "multitask",
    "SentenceEncoder": "encoder",
    "Task": "tasks",
    "TaskSampling": "balancing",
    "TrainingConfig": "training",
    "evaluate": "evaluation",
    "fit": "training",
    "freeze": "freezing",
    "load_challenge": "corpus",
    "load_corpus": "corpus",
    "load_pairs": "corpus",
    "load_public": "public",
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
