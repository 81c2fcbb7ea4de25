"""Why do entities stay behind in a plain sum of losses? One change to it at a time, three epochs, on validation."""

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, TrainingConfig, fit, load_corpus

from .sweeps import Study

VARIANTS = {
    "plain sum": {},
    "entities alone": {},
    "entity loss x 10": {"task_weights": {"entities": 10.0}},
    "entity loss x 30": {"task_weights": {"entities": 30.0}},
    "epochs x 2": {"epochs": 6},
    "encoder's rate x 2": {"learning_rate": 4e-4},
    "heads with a hidden layer": {},
    "plain sum, 5 epochs": {"epochs": 5},
}


def why_entities_suffer(variant: str, seed: int) -> list[dict]:
    """One change to the plain sum of losses; scores on validation."""
    corpus = load_corpus()
    train, validation = (corpus[corpus["split"] == split] for split in ("train", "validation"))
    tasks = [task for task in TASKS if variant != "entities alone" or task.name == "entities"]
    head = "mlp" if variant == "heads with a hidden layer" else "linear"
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), tasks, head=head)
    plain = {"epochs": 3, "learning_rate": 2e-4, "task_weights": {"entities": 1.0}}
    history = fit(model, train, validation, TrainingConfig(**{**plain, **VARIANTS[variant]}, seed=seed))
    best = history.to_frame().query("epoch == @history.best_epoch")
    return [{"task": row.task, "validation": row.score, "chosen_epoch": row.epoch} for row in best.itertuples()]


STUDY = Study(
    "why_entities_suffer",
    "Why do entities stay behind in a plain sum of losses?",
    [{"variant": variant} for variant in VARIANTS],
    why_entities_suffer,
    seeds=range(5),
    minutes=60,
    tolerance=0.06,
)
