"""What should be trained? Six strategies at a short and a long budget, three of them with few sentences too.

Besides the four tasks' rows each run has two more: what is left of the encoder's sense of similarity (STS-B, Spearman's
rank correlation), and how the sentiment head fares on texts from elsewhere, 1,000 sentences of reviews of electronic
goods that it was never trained on. `python -m experiments.what_to_train` writes the comparisons on these two, which
take the labels of public test sets.
"""

from scipy.stats import spearmanr

from mtl_helpers import TASKS, MultiTaskModel, TrainingConfig, load_corpus
from mtl_helpers.evaluation import macro_f1

from .public import load_public
from .runs import RATES, fitted, task_rows
from .sweeps import Study, fingerprint

STRATEGIES = {  # way: strategy of freeze, its options, pooling
    "full training": ("full_training", {}, "mean"),
    "heads first": ("probe_then_finetune", {"epochs": 1}, "mean"),
    "layer-wise decay": ("layerwise_decay", {"decay": 0.8}, "mean"),
    "LoRA": ("lora", {"rank": 8}, "mean"),
    "lower half frozen": ("lower_layers", {"layers": 3}, "mean"),
    "heads alone, last four layers": ("backbone", {}, "last_layers"),
}
HEADS = "heads alone, last four layers"
LONG = ("full training", "heads first", "LoRA")  # the long budget is for those that are compared in quality
FEW = ("full training", "heads first", HEADS)
SIMILARITY, ELSEWHERE = "STS-B", "elsewhere"


def similarity(model: MultiTaskModel) -> dict:
    """The row of STS-B: Spearman's correlation of cosines with human judgements, and the cosines."""
    pairs = load_public("stsb")
    first, second = (model.encoder.encode(pairs[f"sentence_{i}"].tolist()) for i in (1, 2))
    cosines = (first * second).sum(1).numpy()
    test = float(spearmanr(cosines, pairs["score"]).statistic)
    return {"task": SIMILARITY, "test": test, "predictions": [round(float(cosine), 4) for cosine in cosines]}


def elsewhere(model: MultiTaskModel) -> dict:
    """The row of sentiment on reviews: macro-F1, and the labels that the model gives."""
    reviews, task = load_public("reviews").sample(1000, random_state=0), TASKS[2]
    guesses = model.predict(reviews["text"])[task.name]
    coded = [task.index(label) for label in guesses]
    return {"task": ELSEWHERE, "test": macro_f1(reviews[task.name], guesses), "predictions": coded}


def what_to_train(way: str, size: int | None, epochs: int, rate: float, seed: int) -> list[dict]:
    """One strategy, number of sentences, budget and rate: a row a task, one of STS-B, one of texts from elsewhere."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    if size is not None:  # few labels: a quarter as many to choose by, and as many steps as 800 rows make
        train, validation = train.sample(size, random_state=seed), validation.sample(size // 4, random_state=seed)
        epochs = epochs * 800 // size
    strategy, options, pooling = STRATEGIES[way]
    if way == "heads first":
        options = {"epochs": max(1, epochs // 3)}
    heads = 10 * rate if way == HEADS else 1e-3
    usual = {"patience": None, "keep": "best" if size is None else "last", "seed": seed}
    config = TrainingConfig(epochs=epochs, learning_rate=rate, head_learning_rate=heads, **usual)
    model, history = fitted(TASKS, train, validation, config, strategy, options, pooling)
    rows = [*task_rows(model, history, test), similarity(model), elsewhere(model)]
    return [row | {"rows_hash": fingerprint(train, validation, test)} for row in rows]


def rates(way: str) -> tuple[float, ...]:
    """Of the encoder at its peak; what LoRA adds bears three times as much. Two of three are common to all."""
    return (3e-4, 1e-3, 3e-3) if way == "LoRA" else RATES


STUDY = Study(
    "what_to_train",
    "Which parts should be trained, and does the answer change with the budget?",
    [
        {"way": way, "size": size, "epochs": epochs, "rate": rate}
        for size, epochs, ways in ((None, 3, STRATEGIES), (None, 8, LONG), (50, 3, FEW))
        for way in ways
        for rate in rates(way)
    ],
    what_to_train,
    minutes=380,
    tolerance=0.05,
)
