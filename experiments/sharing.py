"""One model for four tasks, or four models? And the recipe that the course recommends, as a whole."""

from mtl_helpers import TASKS, TrainingConfig, load_corpus

from .runs import fitted, task_rows
from .sweeps import Study, fingerprint

EPOCHS, RATES = 5, (1e-4, 3e-4, 1e-3)
LONG = "one model, four times as long"
TOGETHER = {  # way: strategy, its options, epochs
    "one model": ("full_training", {}, EPOCHS),
    "one model, heads first": ("probe_then_finetune", {"epochs": 2}, EPOCHS),
    LONG: ("full_training", {}, 4 * EPOCHS),
}


def sharing(way: str, rate: float, seed: int) -> list[dict]:
    """One of TOGETHER, or a task alone: a row a task."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    tasks = [task for task in TASKS if way in TOGETHER or way == f"alone, {task.name}"]
    strategy, options, epochs = TOGETHER.get(way, ("full_training", {}, EPOCHS))
    config = TrainingConfig(epochs=epochs, learning_rate=rate, patience=None, seed=seed)
    model, history = fitted(tasks, train, validation, config, strategy, options)
    return [row | {"rows_hash": fingerprint(corpus)} for row in task_rows(model, history, test)]


STUDY = Study(
    "sharing",
    "One model for four tasks, or four models?",
    [
        {"way": way, "rate": rate}
        for way in [*TOGETHER, *(f"alone, {task.name}" for task in TASKS)]
        for rate in (RATES if way != LONG else RATES[1:2])  # four times as long is four times as dear: one rate
    ],
    sharing,
    minutes=420,
    tolerance=0.05,
)
