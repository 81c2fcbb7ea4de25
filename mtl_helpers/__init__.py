"""A thin package behind a notebook course on multi-task learning with sentence transformers.

Read the modules in the order in which the course meets them: tasks, corpus, public, minilm, encoder, multitask,
evaluation, freezing, balancing, training, sweeps; figures holds the house style.
"""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="IProgress not found")  # a notebook without widgets
    import tqdm.auto  # noqa: F401

from .balancing import TaskSampling
from .corpus import CorpusError, load_challenge, load_corpus, load_pairs
from .encoder import SentenceEncoder
from .evaluation import evaluate
from .freezing import freeze, trainable_summary
from .multitask import MultiTaskModel
from .public import load_public
from .tasks import TASKS, Task
from .training import History, TrainingConfig, fit

__all__ = [
    "TASKS",
    "CorpusError",
    "History",
    "MultiTaskModel",
    "SentenceEncoder",
    "Task",
    "TaskSampling",
    "TrainingConfig",
    "evaluate",
    "fit",
    "freeze",
    "load_challenge",
    "load_corpus",
    "load_pairs",
    "load_public",
    "trainable_summary",
]
