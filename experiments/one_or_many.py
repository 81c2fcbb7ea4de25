"""One model for four tasks, or four models? Five epochs, the rate chosen on validation with two seeds each.

The loss of entities counts ten times, the default when these rows were measured.
"""

import pandas as pd

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, TrainingConfig, evaluate, fit, load_corpus

from .sweeps import Study

FOUR = "+".join(task.name for task in TASKS)
RATES = {  # tried with two seeds; the best on validation, with five
    FOUR: ((5e-5, 1e-4, 2e-4, 4e-4), 2e-4),
    "topic": ((5e-5, 1e-4, 2e-4), 1e-4),
    "sentence_type": ((5e-5, 1e-4, 2e-4), 1e-4),
    "sentiment": ((2.5e-5, 5e-5, 1e-4, 2e-4), 5e-5),
    "entities": ((5e-5, 1e-4, 2e-4, 4e-4), 2e-4),
}


def one_or_many(tasks: str, learning_rate: float, seed: int) -> list[dict]:
    """Train one model for the tasks named, with the defaults of that time but for the encoder's rate."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    chosen = [task for task in TASKS if task.name in tasks.split("+")]
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), chosen)
    weights = {"entities": 10.0} if "entities" in tasks else {}
    history = fit(
        model, train, validation, TrainingConfig(learning_rate=learning_rate, task_weights=weights, seed=seed)
    )
    best = history.to_frame().query("epoch == @history.best_epoch").set_index("task")
    scores = evaluate(model, test, intervals=False).query("metric in ['macro_f1', 'f1']").set_index("task")["value"]
    about = {
        "chosen_epoch": history.best_epoch,
        "train_seconds": history.steps[-1]["seconds"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return [{"task": t, "validation": best.at[t, "score"], "test": scores[t], **about} for t in best.index]


def seeds(setting: dict) -> range:
    """Two for a rate that is tried, five for the one that was chosen."""
    return range(5 if setting["learning_rate"] == RATES[setting["tasks"]][1] else 2)


STUDY = Study(
    "one_or_many",
    "One model for four tasks, or four models (first edition's rules)?",
    [{"tasks": tasks, "learning_rate": rate} for tasks, (rates, _) in RATES.items() for rate in rates],
    one_or_many,
    seeds,
    minutes=70,
    tolerance=0.06,
)


def settled(rows: pd.DataFrame) -> pd.DataFrame:
    """F1 on test in points at the rates that were chosen, seeds x (tasks of the model, task)."""
    chosen = [rate == RATES[tasks][1] for tasks, rate in zip(rows["tasks"], rows["learning_rate"], strict=True)]
    return 100 * rows[chosen].pivot(index="seed", columns=["tasks", "task"], values="test")


def against_four(test: pd.DataFrame) -> tuple[pd.Series, pd.Series]:
    """Mean over the four tasks, a number a seed: of the one model, and of four models of their own."""
    names = [task.name for task in TASKS]
    return test[FOUR].mean(axis=1), sum(test[name, name] for name in names) / len(names)
