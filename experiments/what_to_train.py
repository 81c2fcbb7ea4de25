"""What should be trained? Six strategies at a short and a long budget, with all sentences and with few.

Besides the scores: what is left of the encoder's sense of similarity (STS-B, Spearman's rank correlation), and how the
sentiment head fares on texts from elsewhere: 1,000 sentences of reviews that it was never trained on.
"""

from scipy.stats import spearmanr

from mtl_helpers import TASKS, MultiTaskModel, TrainingConfig, load_corpus
from mtl_helpers.evaluation import macro_f1

from .public import load_public
from .runs import fitted, task_rows
from .sweeps import Study, fingerprint

STRATEGIES = {  # way: strategy of freeze, its options, pooling
    "full training": ("full_training", {}, "mean"),
    "heads first": ("probe_then_finetune", {"epochs": 1}, "mean"),
    "layer-wise decay": ("layerwise_decay", {"decay": 0.8}, "mean"),
    "LoRA": ("lora", {"rank": 8}, "mean"),
    "lower half frozen": ("lower_layers", {"layers": 3}, "mean"),
    "heads alone, last four layers": ("backbone", {}, "last_layers"),
}
RATES = (2e-4, 6e-4)  # two, so that strategies can be compared at equal rates too
LONG = ("full training", "heads first", "LoRA")  # the long budget is for those that are compared in quality


def similarity(model: MultiTaskModel) -> float:
    """Spearman's correlation of cosines with human judgements on STS-B."""
    pairs = load_public("stsb")
    first, second = (model.encoder.encode(pairs[f"sentence_{i}"].tolist()) for i in (1, 2))
    return float(spearmanr((first * second).sum(1).numpy(), pairs["score"]).statistic)


def elsewhere(model: MultiTaskModel) -> float:
    """Macro-F1 of sentiment on reviews of electronic goods."""
    reviews = load_public("reviews").sample(1000, random_state=0)
    return macro_f1(reviews["sentiment"], model.predict(reviews["text"])["sentiment"])


def what_to_train(way: str, size: int | None, epochs: int, rate: float, seed: int) -> list[dict]:
    """One strategy, number of sentences, budget and rate: a row a task."""
    corpus = load_corpus()
    train, validation, test = (corpus[corpus["split"] == split] for split in ("train", "validation", "test"))
    if size is not None:  # few labels: a quarter as many to choose by, and as many steps as 800 rows make
        train, validation = train.sample(size, random_state=seed), validation.sample(size // 4, random_state=seed)
        epochs = epochs * 800 // size
    strategy, options, pooling = STRATEGIES[way]
    if way == "heads first":
        options = {"epochs": max(1, epochs // 3)}
    heads = 1e-3 if way != "heads alone, last four layers" else 10 * rate
    usual = {"patience": None, "keep": "best" if size is None else "last", "seed": seed}
    config = TrainingConfig(epochs=epochs, learning_rate=rate, head_learning_rate=heads, **usual)
    model, history = fitted(TASKS, train, validation, config, strategy, options, pooling)
    left = {"stsb": similarity(model), "elsewhere": elsewhere(model), "rows_hash": fingerprint(train, validation, test)}
    return [row | left for row in task_rows(model, history, test)]


STUDY = Study(
    "what_to_train",
    "Which parts should be trained, and does the answer change with the budget?",
    [
        {"way": way, "size": size, "epochs": epochs, "rate": rate}
        for size, epochs, ways in ((None, 3, STRATEGIES), (None, 8, LONG), (50, 3, STRATEGIES))
        for way in ways
        for rate in RATES
    ],
    what_to_train,
    minutes=380,
    tolerance=0.05,
)
