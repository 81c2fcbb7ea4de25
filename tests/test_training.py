"""The training loop: its parts against what they promise, and runs that are stopped, killed and damaged."""

import itertools
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from exactly import assert_identical, assert_same_history, weights
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mtl_helpers
from mtl_helpers import TASKS, History, MultiTaskModel, SentenceEncoder, Task, TrainingConfig, evaluate, fit, training
from mtl_helpers.checkpoints import Checkpoints
from mtl_helpers.corpus import collate, make_examples
from mtl_helpers.training import epoch_batches, learning_rate_factor, make_optimizer, train_step, validate

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = [task.name for task in TASKS]
EPOCH_COLUMNS = ["epoch", "task", "train_loss", "validation_loss", "accuracy", "score", "epochs_seen"]
CONFIG = TrainingConfig(
    epochs=3, learning_rate=3e-3, head_learning_rate=1e-2, max_tokens=80, precision="float32", checkpoint_every=3
)
STEPS = 15  # that CONFIG takes on `train`: three epochs of five, so that most checkpoints lie inside an epoch


@pytest.fixture
def train(short: pd.DataFrame) -> pd.DataFrame:
    """A dozen sentences, some without some of their labels."""
    rows = short[short["split"] == "train"][:12].reset_index(drop=True)
    for name, missing in (("topic", [0, 3, 7]), ("sentiment", [3]), ("entities", [4, 5])):
        rows.loc[missing, name] = None
    return rows


@pytest.fixture
def validation(short: pd.DataFrame) -> pd.DataFrame:
    return short[short["split"] == "validation"][:8].reset_index(drop=True)


@pytest.fixture(scope="module")
def build(family_dirs: dict[str, Path]) -> Callable[..., MultiTaskModel]:
    """Function that makes a tiny model; the seed determines its heads."""

    def build(seed: int = 0, tasks: tuple = TASKS, dropout: float = 0.1, **settings) -> MultiTaskModel:
        torch.manual_seed(seed)
        return MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"], **settings), tasks, dropout=dropout)

    return build


def scrambled(model: MultiTaskModel) -> MultiTaskModel:
    """The model with other weights everywhere: what a run must not depend on once it has a checkpoint."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return model


def checkpoints_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


class Run:
    """What a run left: weights of the model, history, and all tensors of the last checkpoint."""

    def __init__(self, model: MultiTaskModel, history: History, directory: Path) -> None:
        self.weights, self.history = weights(model), history
        self.state = load_file(max(directory.glob("step-*.safetensors")))

    def __eq__(self, other: "Run") -> bool:
        assert_identical(self.weights, other.weights)
        assert_identical(self.state, other.state)
        assert_same_history(self.history, other.history)
        return True


@pytest.fixture
def run(build: Callable, train: pd.DataFrame, validation: pd.DataFrame) -> Callable[..., Run]:
    """Function that runs `fit` on a tiny model of its own."""

    def run(directory: Path, config: TrainingConfig = CONFIG, model: MultiTaskModel | None = None) -> Run:
        model = model or build()
        return Run(model, fit(model, train, validation, config, directory), directory)

    return run


@contextmanager
def failing(call: int, function: str = "train_step", error: type[BaseException] = KeyboardInterrupt) -> Iterator:
    """Call number `call` of a function of the module raises an error, and it has to come out."""
    original, calls = getattr(training, function), itertools.count(1)

    def stopping(*args, **kwargs):
        if next(calls) == call:
            raise error
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(error) as caught:
        patch.setattr(training, function, stopping)
        yield caught


@pytest.fixture(scope="module")
def kept() -> dict:
    """Results that several tests look at."""
    return {}


@pytest.fixture
def uninterrupted(kept: dict, run: Callable, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run with CONFIG from start to end."""
    if "run" not in kept:
        kept["run"] = run(tmp_path_factory.mktemp("uninterrupted"))
    return kept["run"]


@pytest.fixture
def stopped(kept: dict, run: Callable, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of the test's own with the checkpoints of steps 9 and 10 of that run, stopped in step 12."""
    if "stopped" not in kept:
        kept["stopped"] = tmp_path_factory.mktemp("stopped")
        with failing(12):
            run(kept["stopped"])
    return Path(shutil.copytree(kept["stopped"], tmp_path / "stopped"))


NEWEST, OLDER = "step-00000010.safetensors", "step-00000009.safetensors"


# ------------------------------------------------------------------------------------------------- the configuration

RATES = (-1e-4, math.nan, math.inf, -math.inf, "0.001", None, True, [0.1])
COUNTS = (0, -1, 2.5, 3.0, True, "3", None, math.nan, 2**31)
IMPOSSIBLE = {
    **dict.fromkeys(("epochs", "max_tokens", "accumulation", "checkpoint_every"), COUNTS),
    "patience": [value for value in COUNTS if value is not None],
    "seed": (-1, 0.0, False, "0", None, 2**31),
    **dict.fromkeys(("learning_rate", "head_learning_rate", "weight_decay"), RATES),
    "warmup": (*RATES, 1.0, 1, 10),
    "max_norm": (0, 0.0, -1.0, -math.inf, math.nan, "1", None, True),
    **dict.fromkeys(("optimizer", "schedule", "precision"), ("", "sgd", "AdamW", "Linear", "float16", None, 1, [])),
    "task_weights": [
        *(None, 1.0, [1.0], "topic", {"topic": 1.0, "sentiment": -0.1}),
        *({"topic": weight} for weight in (-1, math.nan, math.inf, "1", None, True)),
    ],
}


@pytest.mark.parametrize("name, value", [(name, value) for name, values in IMPOSSIBLE.items() for value in values])
def test_impossible_settings_are_refused_by_name(name: str, value: object):
    with pytest.raises(ValueError, match=rf"TrainingConfig: {name} is .*, expected "):
        TrainingConfig(**{name: value})


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"epochs": 1, "max_tokens": 1, "accumulation": 1, "checkpoint_every": 1, "patience": 1, "seed": 2**31 - 1},
        {"learning_rate": 0, "head_learning_rate": 0.0, "weight_decay": 0, "warmup": 0, "max_norm": math.inf},
        {"patience": None, "warmup": 0.999, "task_weights": {"topic": 0, "entities": 2.5}},
        {"optimizer": "adam", "schedule": "cosine", "precision": "bfloat16"},
    ],
)
def test_possible_settings_are_accepted(settings: dict):
    config = TrainingConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_settings_are_frozen():
    with pytest.raises(FrozenInstanceError):
        TrainingConfig().epochs = 0
    assert TrainingConfig() == TrainingConfig(task_weights={})
    assert TrainingConfig().task_weights is not TrainingConfig().task_weights


# ------------------------------------------------------------------------------------------------------- the batches

LENGTHS = [3 + (7 * i) % 23 for i in range(120)]


@given(
    st.lists(st.integers(2, 60), min_size=1, max_size=80),
    st.integers(1, 200),
    st.integers(1, 5),
    st.integers(0, 2**31 - 1),
    st.integers(1, 50),
)
def test_an_epoch_takes_each_position_once_within_the_budget(lengths, max_tokens, accumulation, seed, epoch):
    config = TrainingConfig(max_tokens=max_tokens, accumulation=accumulation, seed=seed)
    steps = epoch_batches(lengths, config, epoch)
    batches = [batch for step in steps for batch in step]
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(len(batch) * max(lengths[i] for i in batch) <= max_tokens or len(batch) == 1 for batch in batches)
    assert all(len(step) == accumulation for step in steps[:-1])
    assert 1 <= len(steps[-1]) <= accumulation
    assert epoch_batches(lengths, config, epoch) == steps


def test_each_epoch_and_each_seed_has_an_order_of_its_own():
    orders = [
        epoch_batches(LENGTHS, TrainingConfig(max_tokens=64, seed=seed), epoch)
        for seed in range(4)
        for epoch in range(1, 6)
    ]
    assert all(a != b for a, b in itertools.combinations(orders, 2))
    first = [order[0][0] for order in orders]
    assert len({LENGTHS[batch[0]] for batch in first}) > 5  # not the longest first, and not the shortest


def test_batches_depend_on_seed_and_epoch_alone():
    expected = epoch_batches(LENGTHS, CONFIG, 3)
    torch.manual_seed(7)
    torch.rand(5)
    assert epoch_batches(LENGTHS, replace(CONFIG, epochs=9, learning_rate=1.0), 3) == expected


# ------------------------------------------------------------------------------------------------ rates and optimizer


def factors(total: int, **settings) -> np.ndarray:
    return np.array([learning_rate_factor(step, total, TrainingConfig(**settings)) for step in range(total)])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "constant"])
@given(st.integers(1, 300), st.floats(0, 0.99))
def test_no_rate_is_above_the_peak_and_none_is_negative(schedule: str, total: int, warmup: float):
    found = factors(total, schedule=schedule, warmup=warmup)
    assert ((found > 0) & (found <= 1)).all()
    assert found.max() == 1
    after = found[math.ceil(warmup * total) :]
    assert (np.diff(after) <= 0).all()


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "constant"])
def test_the_warm_up_rises_evenly_to_the_peak(schedule: str):
    found = factors(40, schedule=schedule, warmup=0.25)
    assert found[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert found[10] == 1
    assert factors(40, schedule=schedule, warmup=0)[0] == 1


@pytest.mark.parametrize(
    "schedule, theirs",
    [
        ("linear", transformers.get_linear_schedule_with_warmup),
        ("cosine", transformers.get_cosine_schedule_with_warmup),
    ],
)
@pytest.mark.parametrize("total, warmup", [(40, 10), (37, 5), (20, 0), (1, 0)])
def test_decaying_schedules_are_those_of_transformers(schedule: str, theirs: Callable, total: int, warmup: int):
    """But for the warm-up, which begins one step later there: with a rate of zero."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    factor = theirs(optimizer, warmup, total).lr_lambdas[0]
    expected = [factor(step + 1 if step < warmup else step) for step in range(total)]
    assert factors(total, schedule=schedule, warmup=warmup / total) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_decaying_schedules_end_near_zero(schedule: str):
    assert 0 < factors(1000, schedule=schedule)[-1] < 0.002


@pytest.mark.parametrize("total", [3, 10, 30, 100, 299, 300])
def test_the_step_schedule_takes_the_last_third_at_a_tenth(total: int):
    found = factors(total, schedule="step", warmup=0)
    assert found.tolist() == [0.1 if 3 * step >= 2 * total else 1.0 for step in range(total)]


def test_the_constant_schedule_stays():
    assert factors(50, schedule="constant", warmup=0.1)[5:].tolist() == [1.0] * 45


def groups_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict]:
    """{name of parameter: its group}, each parameter in one group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    listed = [(names[parameter], group) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(dict(listed)) == len(listed)
    return dict(listed)


@pytest.mark.parametrize("head, projection", [("linear", None), ("mlp", 16)])
def test_matrices_are_decayed_and_heads_have_their_own_rate(head: str, projection: int | None, family_dirs):
    model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"], projection=projection), head=head)
    groups = groups_of(
        model, make_optimizer(model, replace(CONFIG, learning_rate=0.1, head_learning_rate=0.2, weight_decay=0.3))
    )
    trained = {name for name, parameter in model.named_parameters() if "pooler" not in name}
    assert set(groups) == trained
    for name, group in groups.items():
        vector = name.endswith("bias") or "LayerNorm" in name or name.startswith("encoder.projection.2")
        assert group["weight_decay"] == (0.0 if vector else 0.3), name
        assert group["lr"] == group["peak"] == (0.2 if name.startswith("heads.") else 0.1), name
    kinds = {(name.startswith("heads."), group["weight_decay"]) for name, group in groups.items()}
    assert len(kinds) == 4


@pytest.mark.parametrize("name, kind", [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam)])
def test_the_optimizer_is_the_one_that_is_named(name: str, kind: type, model):
    assert type(make_optimizer(model, replace(CONFIG, optimizer=name))) is kind


@pytest.mark.parametrize("same", ["rates", "decay"])
def test_each_parameter_trains_once_if_rates_or_decays_coincide(same: str, model):
    config = replace(CONFIG, head_learning_rate=CONFIG.learning_rate) if same == "rates" else CONFIG
    groups = groups_of(model, make_optimizer(model, replace(config, weight_decay=0.0 if same == "decay" else 0.1)))
    assert len(groups) == sum(parameter.requires_grad for parameter in model.parameters())


def test_frozen_parameters_are_left_out(model):
    model.encoder.requires_grad_(False)
    assert {name.partition(".")[0] for name in groups_of(model, make_optimizer(model, CONFIG))} == {"heads"}
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="every parameter is frozen"):
        make_optimizer(model, CONFIG)


# ---------------------------------------------------------------------------------------------------------- one step


@pytest.fixture
def batches(model: MultiTaskModel, train: pd.DataFrame) -> Callable[..., list[dict]]:
    """Function that makes batches of rows of `train`."""
    examples = make_examples(train, model.encoder.tokenizer, TASKS, 64)
    return lambda *parts: [collate([examples[i] for i in part], model.encoder.tokenizer.pad_token_id) for part in parts]


FREE = replace(CONFIG, max_norm=math.inf, task_weights=dict.fromkeys(NAMES, 1.0))


def step_without_taking_it(
    model: MultiTaskModel, batches: list[dict], config: TrainingConfig = FREE
) -> tuple[dict[str, Tensor], dict[str, float], float]:
    """Gradients (missing ones are zero), losses and norm of a step that changes nothing."""
    model.zero_grad()
    optimizer = make_optimizer(model, config)
    optimizer.step = optimizer.zero_grad = lambda: None
    losses, norm = train_step(model, optimizer, batches, config)
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    model.zero_grad()
    return gradients, losses, norm


def length(gradients: dict[str, Tensor]) -> float:
    return sum(gradient.double().square().sum().item() for gradient in gradients.values()) ** 0.5


PARTS = {
    "even": ([0, 1, 2, 3, 4, 5], [6, 7, 8, 9, 10, 11]),
    "uneven": ([0], [1, 2, 3, 7, 8], [4, 5], [6, 9, 10, 11]),
    "without labels in places": ([0, 3, 7], [4, 5], [1, 2, 6, 8, 9, 10, 11]),
    "one by one": tuple([i] for i in range(12)),
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_accumulation_gives_the_gradient_of_one_larger_batch(parts: tuple, model, batches):
    config = replace(FREE, task_weights={"topic": 0.5, "entities": 3.0})
    expected, losses, norm = step_without_taking_it(model, batches(range(12)), config)
    found = step_without_taking_it(model, batches(*parts), config)
    assert found[1] == pytest.approx(losses, rel=1e-4)
    assert found[2] == pytest.approx(norm, rel=1e-4)
    assert norm > 0.1
    torch.testing.assert_close(found[0], expected, rtol=1e-3, atol=1e-5)


def test_losses_are_those_of_the_model(model, batches):
    [batch] = batches(range(12))
    expected = {name: loss.item() for name, loss in model.loss(model(batch), batch["labels"]).items()}
    _, losses, _ = step_without_taking_it(model, [batch], replace(FREE, task_weights={"topic": 0.0}))
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_task_without_labels_contributes_nothing(model, batches):
    unlabelled = batches([0, 3, 7])  # none of them has a topic
    gradients, losses, _ = step_without_taking_it(model, unlabelled)
    assert "topic" not in losses and len(losses) == 3
    silent = replace(FREE, task_weights={**FREE.task_weights, "topic": 0.0})
    torch.testing.assert_close(gradients, step_without_taking_it(model, unlabelled, silent)[0], rtol=0, atol=0)
    assert not gradients["heads.topic.1.weight"].any()
    assert gradients["heads.sentiment.1.weight"].any()


def test_a_batch_without_any_label_changes_nothing(model, train):
    examples = make_examples(train[["text"]], model.encoder.tokenizer, TASKS, 64)
    before = weights(model)
    found = train_step(model, make_optimizer(model, CONFIG), [collate(examples, 0)], CONFIG)
    assert found == ({}, 0.0)
    assert_identical(weights(model), before)


def test_task_weights_scale_the_gradient(model, batches):
    def gradient(**factors: float) -> dict[str, Tensor]:
        config = replace(FREE, task_weights={**dict.fromkeys(NAMES, 0.0), **factors})
        return step_without_taking_it(model, batches(range(12)), config)[0]

    single = {name: gradient(**{name: 1.0}) for name in NAMES}
    assert all(length(part) > 0.01 for part in single.values())
    total = {
        key: 3 * single["topic"][key] + 0.5 * single["entities"][key] + single["sentiment"][key]
        for key in single["topic"]
    }
    found = gradient(topic=3, entities=0.5, sentiment=1)
    torch.testing.assert_close(found, total, rtol=1e-3, atol=1e-5)


def test_unnamed_token_tasks_weigh_more(model, batches):
    usual = step_without_taking_it(model, batches(range(12)), replace(FREE, task_weights={}))[0]
    named = replace(FREE, task_weights={**dict.fromkeys(NAMES, 1.0), "entities": training.TOKEN_WEIGHT})
    assert training.TOKEN_WEIGHT > 1
    torch.testing.assert_close(usual, step_without_taking_it(model, batches(range(12)), named)[0], rtol=0, atol=0)


def test_long_gradients_are_scaled_down_and_short_ones_left(model, batches):
    free, _, norm = step_without_taking_it(model, batches(range(12)))
    assert norm == pytest.approx(length(free), rel=1e-4)
    cut, _, before = step_without_taking_it(model, batches(range(12)), replace(FREE, max_norm=norm / 4))
    assert before == norm
    torch.testing.assert_close(cut, {name: g / 4 for name, g in free.items()}, rtol=1e-3, atol=1e-7)
    kept, _, _ = step_without_taking_it(model, batches(range(12)), replace(FREE, max_norm=norm * 2))
    torch.testing.assert_close(kept, free, rtol=0, atol=0)


def test_a_step_lowers_the_loss_and_leaves_no_gradient(model, batches):
    config = replace(FREE, learning_rate=1e-3)
    optimizer = make_optimizer(model, config)
    losses = [sum(train_step(model, optimizer, batches(range(12)), config)[0].values()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert all(parameter.grad is None for parameter in model.parameters())


def broken_loss(model: MultiTaskModel, task: str, value: float, from_call: int = 1) -> Callable:
    """The model's `loss`, which for one task gives another value from some call on."""
    original, calls = model.loss, itertools.count(1)

    def loss(logits: dict, labels: dict, criteria: dict) -> dict:
        losses = original(logits, labels, criteria)
        return losses | ({task: losses[task] * value} if next(calls) >= from_call else {})

    return loss


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("call", [1, 2])
def test_a_loss_that_is_not_finite_changes_nothing(call: int, value: float, model, batches, monkeypatch):
    expected = step_without_taking_it(model, batches([8, 9]))[2]
    optimizer, before = make_optimizer(model, CONFIG), weights(model)
    with monkeypatch.context() as patch:
        patch.setattr(model, "loss", broken_loss(model, "sentiment", value, call))
        with pytest.raises(FloatingPointError, match=f"the loss of task 'sentiment' is {value}"):
            train_step(model, optimizer, batches([0, 1, 2], [4, 5, 6]), CONFIG)
    assert_identical(weights(model), before)
    assert not optimizer.state
    assert train_step(model, optimizer, batches([8, 9]), FREE)[1] == expected  # nothing is left of the other gradient


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(value: float, model, batches):
    expected = step_without_taking_it(model, batches([8, 9]))[2]
    optimizer, before = make_optimizer(model, CONFIG), weights(model)
    hook = model.heads["sentiment"][1].weight.register_hook(lambda gradient: gradient * value)
    with pytest.raises(FloatingPointError, match=r"the gradient of topic \+ .*sentiment.* has the length (nan|inf)"):
        train_step(model, optimizer, batches([1, 2], [4, 5, 6]), CONFIG)
    hook.remove()
    assert_identical(weights(model), before)
    assert not optimizer.state
    assert train_step(model, optimizer, batches([8, 9]), FREE)[1] == expected


# -------------------------------------------------------------------------------------------------------- validation


def test_validation_scores_are_those_of_evaluate(build, uninterrupted, short):
    model = build().eval()
    model.load_state_dict(uninterrupted.weights)
    rows = short[:60].copy()
    rows.loc[rows.index[:7], "topic"] = rows.loc[rows.index[5:9], "entities"] = None
    found = validate(model, make_examples(rows, model.encoder.tokenizer, TASKS, 64))
    scores = evaluate(model, rows, draws=2).set_index(["task", "metric"])["value"]
    for task in TASKS:
        metric = "f1" if task.level == "token" else "macro_f1"
        assert found[task.name]["score"] == pytest.approx(scores[task.name, metric])
        if task.level == "sentence":
            assert found[task.name]["accuracy"] == pytest.approx(scores[task.name, "accuracy"])
    assert len({round(scores["score"], 3) for scores in found.values()}) > 2


def test_validation_losses_are_means_over_all_labels(model, train):
    examples = make_examples(train, model.encoder.tokenizer, TASKS, 64)
    batch = collate(examples, model.encoder.tokenizer.pad_token_id)
    with torch.no_grad():
        logits = model(batch)
        expected = model.loss(logits, batch["labels"])
    found = validate(model.train(), examples)
    for name in NAMES:
        assert found[name]["validation_loss"] == pytest.approx(expected[name].item(), rel=1e-4)
        labels = batch["labels"][name]
        right = (logits[name].argmax(-1) == labels)[labels != training.IGNORE]
        assert found[name]["accuracy"] == pytest.approx(right.double().mean().item())
    assert model.training  # as it was before


def test_validation_of_a_task_without_labels_is_nan(model, train):
    found = validate(model, make_examples(train[["text", "topic"]], model.encoder.tokenizer, TASKS, 64))
    assert all(math.isfinite(value) for value in found["topic"].values())
    assert all(math.isnan(value) for name in NAMES[1:] for value in found[name].values())


# --------------------------------------------------------------------------------------------------------------- fit


def test_a_tiny_model_learns_a_dozen_sentences_by_heart(build, train):
    model = build(dropout=0.0)
    config = replace(CONFIG, epochs=60, learning_rate=6e-3, head_learning_rate=6e-3, max_tokens=400, patience=None)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    epochs = fit(model, train, train, config).to_frame().set_index(["epoch", "task"])
    for name in NAMES:
        assert epochs.loc[(60, name), "train_loss"] < 0.1 * epochs.loc[(1, name), "train_loss"]
        assert epochs.loc[(60, name), "score"] > 0.9
    predicted = model.predict(train["text"])
    assert (predicted["topic"] == train["topic"])[train["topic"].notna()].mean() > 0.9


def test_the_history_has_the_columns_it_says(uninterrupted):
    epochs, steps = uninterrupted.history.to_frame(), uninterrupted.history.to_frame("steps")
    assert list(epochs) == EPOCH_COLUMNS
    assert epochs[["epoch", "task"]].to_numpy().tolist() == [[epoch, name] for epoch in (1, 2, 3) for name in NAMES]
    documented = ["step", "epoch", "seconds", "learning_rate", "gradient_norm", *(f"{name}_loss" for name in NAMES)]
    assert set(documented) <= set(steps)
    assert steps["step"].tolist() == list(range(1, STEPS + 1))
    assert steps["epoch"].tolist() == [1] * 5 + [2] * 5 + [3] * 5
    assert steps["seconds"].is_monotonic_increasing and steps["seconds"].iloc[0] >= 0
    expected = [CONFIG.learning_rate * learning_rate_factor(step, STEPS, CONFIG) for step in range(STEPS)]
    assert steps["learning_rate"].tolist() == expected
    assert (steps["gradient_norm"] > 0).all()


def test_epochs_seen_counts_labels_and_losses_are_means_over_the_epoch(uninterrupted, train):
    epochs, steps = uninterrupted.history.to_frame(), uninterrupted.history.to_frame("steps")
    for name in NAMES:
        rows = epochs[epochs["task"] == name]
        assert rows["epochs_seen"].tolist() == [1.0, 2.0, 3.0]
        assert steps[f"{name}_labels"].sum() == 3 * train[name].notna().sum()
        for epoch, loss in zip(rows["epoch"], rows["train_loss"], strict=True):
            part = steps[(steps["epoch"] == epoch) & (steps[f"{name}_labels"] > 0)]
            assert loss == pytest.approx(np.average(part[f"{name}_loss"], weights=part[f"{name}_labels"]))


def test_the_train_loss_is_the_validation_loss_if_nothing_moves(build, train):
    model = build(dropout=0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    before = weights(model)
    history = fit(model, train, train, replace(CONFIG, learning_rate=0.0, head_learning_rate=0.0, epochs=1))
    assert_identical(weights(model), before)
    for row in history.epochs[:3]:
        assert row["train_loss"] == pytest.approx(row["validation_loss"], rel=1e-4)


def scripted(scores: list[float] | list[dict], after: list) -> Callable:
    """A `validate` with given scores, one per epoch; keeps the weights after each epoch in `after`."""

    def validate(model: MultiTaskModel, examples: list, precision: str) -> dict:
        score = scores[len(after)]
        after.append(weights(model))
        each = score if isinstance(score, dict) else dict.fromkeys(NAMES, score)
        return {name: {"validation_loss": 1.0, "accuracy": 0.5, "score": each[name]} for name in NAMES}

    return validate


@pytest.mark.parametrize(
    "scores, best", [([0.1, 0.2, 0.3], 3), ([0.3, 0.2, 0.1], 1), ([0.1, 0.3, 0.2], 2), ([0.2, 0.3, 0.3], 2)]
)
def test_the_model_ends_with_the_weights_of_its_best_epoch(scores, best, build, train, validation, monkeypatch):
    model, after = build(), []
    monkeypatch.setattr(training, "validate", scripted(scores, after))
    history = fit(model, train, validation, CONFIG)
    assert history.best_epoch == best
    assert history.scores.to_dict() == pytest.approx(dict(enumerate(scores, start=1)))
    assert_identical(weights(model), after[best - 1])
    assert not torch.equal(after[0]["heads.topic.1.weight"], after[1]["heads.topic.1.weight"])
    assert not any(module.training for module in model.modules())


def test_the_model_scores_as_the_history_says(build, train, validation):
    model = build()
    history = fit(model, train, validation, replace(CONFIG, epochs=4))
    found = validate(model, make_examples(validation, model.encoder.tokenizer, TASKS, 64))
    epochs = history.to_frame()
    best = epochs[epochs["epoch"] == history.best_epoch].set_index("task")
    for name in NAMES:
        assert found[name] == best.loc[name, list(found[name])].to_dict()


def test_training_stops_when_validation_no_longer_improves(build, train, validation, monkeypatch, tmp_path):
    scores, after = [0.3, 0.2, 0.4, 0.4, 0.1, 0.9, 0.9], []
    monkeypatch.setattr(training, "validate", scripted(scores, after))
    model, config = build(), replace(CONFIG, epochs=7, patience=2)
    history = fit(model, train, validation, config, tmp_path)
    assert history.scores.index.tolist() == [1, 2, 3, 4, 5]
    assert history.best_epoch == 3
    assert_identical(weights(model), after[2])
    monkeypatch.setattr(training, "train_step", None)
    again = scrambled(build())
    assert_same_history(fit(again, train, validation, config, tmp_path), history)
    assert_identical(weights(again), after[2])


def test_without_patience_training_goes_on_to_the_end(build, train, validation, monkeypatch):
    after = []
    monkeypatch.setattr(training, "validate", scripted([0.9, *[0.1] * 5], after))
    history = fit(build(), train, validation, replace(CONFIG, epochs=6, patience=None))
    assert (len(after), history.best_epoch) == (6, 1)


def test_each_task_has_a_best_epoch_of_its_own(build, train, validation, monkeypatch):
    columns = {
        "topic": [0.1, 0.3, 0.2],
        "sentence_type": [0.5, 0.5, 0.5],
        "sentiment": [math.nan] * 3,
        "entities": [0.0, 0.1, 0.4],
    }
    scores = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    monkeypatch.setattr(training, "validate", scripted(scores, []))
    history = fit(build(), train, validation, CONFIG)
    assert history.best_epochs == {"topic": 2, "sentence_type": 1, "entities": 3}
    assert history.scores.tolist() == pytest.approx([0.2, 0.3, 1.1 / 3])
    assert history.best_epoch == 3
    assert len(history.plot().axes) == 2


def test_two_runs_with_one_seed_are_identical_and_another_seed_differs(run, build, uninterrupted, tmp_path):
    model = build()
    torch.rand(3)  # what was drawn before doesn't matter
    assert run(tmp_path / "again", model=model) == uninterrupted
    other = run(tmp_path / "other", replace(CONFIG, seed=1))
    assert not torch.equal(other.weights["heads.topic.1.weight"], uninterrupted.weights["heads.topic.1.weight"])
    assert other.history.steps[0]["topic_loss"] != uninterrupted.history.steps[0]["topic_loss"]


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam"},
        {"schedule": "step"},
        {"accumulation": 2},
        {"max_norm": 0.1},
        {"weight_decay": 0.5},
        {"task_weights": {"topic": 5.0}},
        {"head_learning_rate": 1e-3},
    ],
    ids=str,
)
def test_each_setting_has_an_effect(settings: dict, build, train, validation, uninterrupted):
    model = build()
    history = fit(model, train, validation, replace(CONFIG, **settings))
    assert not torch.equal(weights(model)["heads.topic.1.weight"], uninterrupted.weights["heads.topic.1.weight"])
    assert len(history.steps) == (9 if "accumulation" in settings else STEPS)


def test_frozen_parts_stay_as_they_are(build, train, validation):
    model = build()
    model.encoder.requires_grad_(False)
    before = weights(model)
    fit(model, train, validation, replace(CONFIG, epochs=1))
    changed = {
        name.partition(".")[0] for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])
    }
    assert changed == {"heads"}


@pytest.mark.parametrize("family", ["distilbert", "roberta", "mpnet", "electra"])
def test_other_families_train_and_go_on_too(family: str, family_dirs, train, validation, tmp_path):
    def model() -> MultiTaskModel:
        torch.manual_seed(0)
        return MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs[family]))

    expected = model()
    history = fit(expected, train, validation, replace(CONFIG, epochs=2))
    with failing(5):
        fit(model(), train, validation, replace(CONFIG, epochs=2), tmp_path)
    again = scrambled(model())
    assert_same_history(fit(again, train, validation, replace(CONFIG, epochs=2), tmp_path), history)
    assert_identical(weights(again), weights(expected))


def test_any_set_of_tasks_and_any_index(family_dirs, train, validation):
    tasks = (Task("mood", ("negative", "neutral", "positive")), Task("names", ("PER", "ORG", "LOC"), level="token"))
    torch.manual_seed(0)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"]), tasks)
    columns = {"sentiment": "mood", "entities": "names"}
    sides = [side.rename(columns=columns).set_index(side.index * 7 + 3) for side in (train, validation)]
    history = fit(model, *sides, replace(CONFIG, epochs=1))
    assert history.to_frame()["task"].tolist() == ["mood", "names"]
    assert history.to_frame()["epochs_seen"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("missing", [None, math.nan, pd.NA], ids=repr)
def test_whatever_pandas_calls_missing_is_no_label(missing: object, build, train, validation, uninterrupted):
    train = train.astype(object).where(train.notna(), missing)
    model = build()
    assert_same_history(fit(model, train, validation, CONFIG), uninterrupted.history)


def test_low_precision_trains_weights_of_high_precision(build, train, validation):
    model = build()
    history = fit(model, train, validation, replace(CONFIG, precision="auto"))
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert np.isfinite(history.to_frame("steps")["gradient_norm"]).all()


def test_bfloat16_without_hardware_is_float32_and_a_warning(build, train, validation, uninterrupted, monkeypatch):
    monkeypatch.setattr("mtl_helpers.encoder.bfloat16_is_fast", lambda device: False)
    monkeypatch.setattr(training, "bfloat16_is_fast", lambda device: False)
    assert_same_history(
        fit(build(), train, validation, replace(CONFIG, precision="auto")), uninterrupted.history
    )  # without a warning
    with pytest.warns(UserWarning, match="no fast bfloat16"):
        history = fit(build(), train, validation, replace(CONFIG, precision="bfloat16"))
    assert_same_history(history, uninterrupted.history)


# ------------------------------------------------------------------------------------------- tables that do not serve


@pytest.mark.parametrize("which", ["train", "validation"])
@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda rows: rows.drop(columns="text"), "found 12 rows with the columns id, topic.*expected some with text"),
        (lambda rows: rows[:0], "found 0 rows"),
        (lambda rows: rows[["id", "text", "split"]], "found no label in 12 rows.*topic, sentence_type, sentiment"),
        (lambda rows: rows.assign(**dict.fromkeys(NAMES)), "found no label in 12 rows"),
        (lambda rows: pd.DataFrame(), "found 0 rows"),
    ],
    ids=["no text", "no row", "no column of a task", "no label", "nothing"],
)
def test_a_table_that_can_not_be_used_is_refused(which: str, spoil: Callable, message: str, model, train):
    tables = {"train": train, "validation": train} | {which: spoil(train)}
    before = weights(model)
    with pytest.raises(ValueError, match=f"^{which}: {message}"):
        fit(model, **tables, config=CONFIG)
    assert_identical(weights(model), before)


def test_a_label_that_no_task_has_is_refused(model, train):
    with pytest.raises(ValueError, match="task 'topic' has no label 'gardening', expected one of business"):
        fit(model, train.assign(topic="gardening"), train, CONFIG)


def test_weights_for_an_unknown_task_are_refused(model, train):
    with pytest.raises(ValueError, match="task_weights names 'Topic', expected tasks of the model"):
        fit(model, train, train, replace(CONFIG, task_weights={"Topic": 2.0}))


def test_nothing_to_train_is_refused(model, train):
    with pytest.raises(ValueError, match="every parameter is frozen"):
        fit(model.requires_grad_(False), train, train, CONFIG)


@pytest.mark.parametrize("missing", ["column", "cells"])
def test_a_task_without_labels_in_train_is_warned_of(missing: str, build, train, validation):
    train = train.drop(columns="sentiment") if missing == "column" else train.assign(sentiment=None)
    model = build()
    before = weights(model)
    with pytest.warns(UserWarning, match="train has no label for sentiment") as caught:
        history = fit(model, train, validation, CONFIG)
    assert [warning.filename for warning in caught] == [__file__]
    rows = history.to_frame()[lambda epochs: epochs["task"] == "sentiment"]
    assert rows["train_loss"].isna().all()
    assert rows["validation_loss"].notna().all()
    assert rows["epochs_seen"].tolist() == [0.0] * 3
    assert_identical(
        *[{"weight": state["heads.sentiment.1.weight"]} for state in (weights(model), before)]
    )  # no gradient, so no decay either
    assert not any(name.startswith("sentiment_loss") for name in history.to_frame("steps"))


def test_a_task_without_labels_in_validation_is_warned_of(build, train, validation):
    with pytest.warns(UserWarning, match="validation has no label for topic, entities"):
        history = fit(build(), train, validation[["text", "sentence_type", "sentiment"]], CONFIG)
    epochs = history.to_frame()
    assert epochs["score"].isna().tolist() == [True, False, False, True] * 3
    assert epochs["train_loss"].notna().all()
    assert set(history.best_epochs) == {"sentence_type", "sentiment"}
    assert history.scores.notna().all()


# ------------------------------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("at", [1, 2, 4, 5, 6, 7, 10, 11, STEPS])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(at: int, run, build, uninterrupted, tmp_path):
    """Checkpoints lie behind steps 3, 5, 6, 9, 10, 12 and 15; before the first the same model has to be built."""
    with failing(at):
        run(tmp_path / "run")
    assert run(tmp_path / "run", model=scrambled(build()) if at > 3 else build()) == uninterrupted


def test_a_run_that_was_stopped_in_validation_goes_on(run, build, uninterrupted, tmp_path):
    for call in (1, 2):  # at the end of the first epoch, and of the third: the second run begins with step 4
        with failing(call, "validate"):
            run(tmp_path, model=None if call == 1 else scrambled(build()))
    assert run(tmp_path, model=scrambled(build())) == uninterrupted


@pytest.mark.parametrize("call", [2, 3, 5])
def test_a_run_that_was_stopped_while_it_wrote_goes_on(call: int, run, build, uninterrupted, tmp_path, monkeypatch):
    calls = itertools.count(1)

    def half(tensors: dict, path: Path, metadata: dict) -> None:
        save_file(tensors, path, metadata)
        if next(calls) == call:
            os.truncate(path, path.stat().st_size // 2)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("mtl_helpers.checkpoints.save_file", half)
        run(tmp_path)
    assert "partial" in checkpoints_in(tmp_path)
    assert run(tmp_path, model=scrambled(build())) == uninterrupted
    assert "partial" not in checkpoints_in(tmp_path)


def test_a_run_that_is_stopped_at_every_second_step_gets_to_its_end(run, build, uninterrupted, tmp_path):
    often = replace(CONFIG, checkpoint_every=1)
    for _ in range(STEPS - 1):
        with failing(2):
            run(tmp_path, often, scrambled(build()) if any(tmp_path.iterdir()) else build())
    assert run(tmp_path, often, scrambled(build())) == uninterrupted


def test_seconds_add_up_over_interruptions(run, tmp_path):
    with failing(11):
        run(tmp_path)
    seconds = run(tmp_path).history.to_frame("steps")["seconds"]
    assert seconds.is_monotonic_increasing


def test_what_fit_draws_itself_is_in_the_checkpoint(run, build, uninterrupted, tmp_path):
    with failing(8):
        run(tmp_path)
    model = scrambled(build())
    torch.manual_seed(99)
    torch.rand(17)
    assert run(tmp_path, model=model) == uninterrupted


def test_a_finished_run_is_not_run_again(run, build, train, validation, tmp_path, monkeypatch):
    first = run(tmp_path)
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(training, "train_step", None)
    monkeypatch.setattr(training, "validate", None)
    model = scrambled(build())
    history = fit(model, train, validation, CONFIG, tmp_path)
    assert asdict(history) == asdict(first.history)  # seconds too
    assert_identical(weights(model), first.weights)
    assert not model.training
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_at_most_two_checkpoints_are_kept(run, tmp_path, monkeypatch):
    original, seen = training.train_step, []

    def spy(*args):
        seen.append(checkpoints_in(tmp_path / "a" / "b") if (tmp_path / "a" / "b").exists() else [])
        return original(*args)

    monkeypatch.setattr(training, "train_step", spy)
    run(tmp_path / "a" / "b")
    assert [len(names) for names in seen] == [0, 0, 0, 1, 1] + [2] * 10
    expected = [f"step-{step:08d}.safetensors" for step in (12, 15)]
    assert checkpoints_in(tmp_path / "a" / "b") == expected


def test_without_a_directory_nothing_is_written(build, train, validation, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(build(), train, validation, replace(CONFIG, epochs=1))
    assert checkpoints_in(tmp_path) == []


def test_the_directory_may_be_a_string(build, train, validation, tmp_path):
    fit(build(), train, validation, replace(CONFIG, epochs=1), str(tmp_path / "run"))
    assert checkpoints_in(tmp_path / "run") == ["step-00000003.safetensors", "step-00000005.safetensors"]


def test_checkpoints_at_other_intervals_may_be_gone_on_from(run, build, uninterrupted, stopped):
    assert run(stopped, replace(CONFIG, checkpoint_every=7), scrambled(build())) == uninterrupted


# ------------------------------------------------------------------------------------------- what a stopped run says


def test_an_interruption_says_where_it_was_and_how_to_go_on(build, train, validation, tmp_path, monkeypatch):
    model, after = build(), []
    monkeypatch.setattr(training, "validate", scripted([0.3, 0.2, 0.1], after))
    with failing(12) as caught:
        fit(model, train, validation, CONFIG, tmp_path)
    message = str(caught.value)
    assert "step 12 of 15 (epoch 3)" in message
    assert "holds the weights of epoch 1" in message
    assert "call fit again with the same arguments" in message and str(tmp_path) in message
    assert_identical(weights(model), after[0])
    assert not model.training
    assert len(model.predict(["Good soup."])) == 1


def test_an_interruption_without_a_directory_says_what_would_have_helped(build, train, validation):
    model = build()
    before = weights(model)
    with failing(4) as caught:
        fit(model, train, validation, CONFIG)
    message = str(caught.value)
    assert "step 4 of 15 (epoch 1)" in message
    assert "the model holds its last weights" in message
    assert "no checkpoint was written" in message and "give fit a directory" in message
    assert not torch.equal(weights(model)["heads.topic.1.weight"], before["heads.topic.1.weight"])
    assert not any(module.training for module in model.modules())
    assert len(model.predict(["Good soup."])) == 1


def test_an_interruption_in_the_very_first_step_leaves_the_model_as_it_was(build, train, validation):
    model = build()
    before = weights(model)
    with failing(1) as caught:
        fit(model, train, validation, CONFIG)
    assert "step 1 of 15 (epoch 1)" in str(caught.value)
    assert_identical(weights(model), before)


def test_an_interruption_before_the_first_checkpoint_does_not_promise_one(build, train, validation, tmp_path):
    with failing(3) as caught:
        fit(build(), train, validation, CONFIG, tmp_path / "run")
    assert "no checkpoint was written yet" in str(caught.value)
    assert "checkpoints are in" not in str(caught.value)


@pytest.mark.parametrize("at, holds", [(2, "its last weights"), (8, "the weights of epoch 1")])
def test_a_loss_that_is_not_finite_ends_the_run(at: int, holds: str, build, train, validation, monkeypatch, tmp_path):
    model, after = build(), []
    monkeypatch.setattr(training, "validate", scripted([0.3, 0.2, 0.1], after))
    monkeypatch.setattr(model, "loss", broken_loss(model, "entities", math.nan, at))
    with pytest.raises(FloatingPointError) as caught:
        fit(model, train, validation, CONFIG, tmp_path)
    message = str(caught.value)
    assert f"the loss of task 'entities' is nan in step {at} of 15 (epoch {1 + at // 6})" in message
    assert f"the model holds {holds}" in message
    assert "try a lower learning rate" in message
    assert all(tensor.isfinite().all() for tensor in weights(model).values())
    assert not model.training
    if after:
        assert_identical(weights(model), after[0])


def test_a_rate_that_is_much_too_high_ends_the_run(build, train, validation):
    model = build()
    config = replace(CONFIG, learning_rate=1e20, head_learning_rate=1e20, schedule="constant", warmup=0.0)
    with pytest.raises(FloatingPointError, match=r"(loss|gradient) of .* in step \d+ of 15 .*lower learning rate"):
        fit(model, train, validation, config)
    assert all(tensor.isfinite().all() for tensor in weights(model).values())


# ------------------------------------------------------------------------------------------------- damaged checkpoints


def flip(path: Path, place: float, bit: int = 0) -> None:
    """Flip a bit of the byte at a place between 0 (the first) and 1 (the last)."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)


DAMAGE = {
    "empty": lambda path: os.truncate(path, 0),
    "one byte": lambda path: os.truncate(path, 1),
    "length of the header only": lambda path: os.truncate(path, 8),
    "a part of the header": lambda path: os.truncate(path, 500),
    "half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "without the last byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "one byte more": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "a bit of the first byte": lambda path: flip(path, 0),
    "a bit of the names": lambda path: flip(path, 1000 / path.stat().st_size),
    "a bit in the middle": lambda path: flip(path, 0.5, 7),
    "a bit at three quarters": lambda path: flip(path, 0.75, 3),
    "a bit of the last byte": lambda path: flip(path, 1),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "text": lambda path: path.write_text("no safetensors file at all"),
    "other tensors": lambda path: save_file({"model.weight": torch.zeros(3)}, path),
    "other tensors with a state": lambda path: save_file({}, path, {"state": "{}", "sha256": "0" * 64}),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(damage: Callable, run, build, uninterrupted, stopped):
    assert checkpoints_in(stopped) == [OLDER, NEWEST]
    damage(stopped / NEWEST)
    with pytest.warns(UserWarning, match=f"{NEWEST}: .*damaged.*going on from {OLDER}") as caught:
        assert run(stopped, model=scrambled(build())) == uninterrupted
    assert [warning.filename for warning in caught] == [__file__]
    assert f"{NEWEST}.refused" in checkpoints_in(stopped)


def test_weights_of_a_model_are_no_checkpoint(run, build, uninterrupted, stopped, family_dirs):
    shutil.copy(family_dirs["bert"] / "model.safetensors", stopped / "step-00000011.safetensors")
    with pytest.warns(UserWarning, match="step-00000011.safetensors: .*not a checkpoint"):
        assert run(stopped, model=scrambled(build())) == uninterrupted


@pytest.mark.parametrize("content", [b"", b"\0" * 100, "half"], ids=["empty", "zeros", "half"])
def test_what_a_kill_left_half_written_is_ignored(content: bytes | str, run, build, uninterrupted, stopped):
    half = (stopped / NEWEST).read_bytes()[:20_000]
    (stopped / "partial").write_bytes(half if content == "half" else content)
    assert run(stopped, model=scrambled(build())) == uninterrupted
    assert checkpoints_in(stopped) == [f"step-{step:08d}.safetensors" for step in (12, 15)]


def test_a_half_written_first_checkpoint_is_ignored(run, uninterrupted, tmp_path):
    (tmp_path / "partial").write_bytes(b"\0" * 100)
    (tmp_path / "notes.txt").write_text("not mine")
    assert run(tmp_path) == uninterrupted
    assert (tmp_path / "notes.txt").read_text() == "not mine"


@pytest.fixture
def small(tmp_path: Path) -> tuple[Checkpoints, Path]:
    """A checkpoint of a few hundred bytes, and its path."""
    checkpoints = Checkpoints(tmp_path, {"seed": 0})
    tensors = {"model.weight": torch.arange(4.0).reshape(2, 2), "random.cpu": torch.arange(3, dtype=torch.uint8)}
    checkpoints.save(1, tensors, {"history": {"steps": [{"loss": 0.5}], "epochs": []}})
    return checkpoints, tmp_path / "step-00000001.safetensors"


def test_flipped_bits_are_noticed(small):
    checkpoints, path = small
    content = path.read_bytes()
    for place, bit in itertools.product(range(len(content)), (0, 5)):  # bit 5: between upper and lower case
        flipped = bytearray(content)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="damaged"):
            checkpoints.load()


def test_every_truncation_is_noticed(small):
    checkpoints, path = small
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match="truncated or damaged"):
            checkpoints.load()


# --------------------------------------------------------------------------------------- checkpoints of another run


class Changed:
    """The arguments of a run, to be changed in place."""

    def __init__(self, build: Callable, train: pd.DataFrame, validation: pd.DataFrame) -> None:
        self.build, self.train, self.validation, self.config = build, train.copy(), validation.copy(), CONFIG
        self.settings: dict = {}
        self.change: Callable = lambda model: None

    def fit(self, directory: Path) -> History:
        model = self.build(**self.settings)
        self.change(model)
        return fit(model, self.train, self.validation, self.config, directory)


@pytest.fixture
def changed(build: Callable, train: pd.DataFrame, validation: pd.DataFrame) -> Changed:
    return Changed(build, train, validation)


def freeze(model: MultiTaskModel) -> None:
    model.encoder.backbone.embeddings.requires_grad_(False)


def fewer_heads(model: MultiTaskModel) -> None:
    for layer in model.encoder.backbone.encoder.layer:
        layer.attention.self.num_attention_heads, layer.attention.self.attention_head_size = 2, 16
    model.encoder.backbone.config.num_attention_heads = 2


def other_labels() -> tuple[Task, ...]:
    return (Task("topic", TASKS[0].labels[::-1]), *TASKS[1:])


OTHER_RUNS = {
    "seed": (lambda run: setattr(run, "config", replace(CONFIG, seed=1)), "seed is 0 there and 1 here"),
    "epochs": (lambda run: setattr(run, "config", replace(CONFIG, epochs=4)), "epochs is 3 there and 4 here"),
    "clipping": (lambda run: setattr(run, "config", replace(CONFIG, max_norm=math.inf)), "max_norm is 1.0 there"),
    "weights of tasks": (
        lambda run: setattr(run, "config", replace(CONFIG, task_weights={"topic": 2})),
        "task_weights is {} there and {'topic': 2} here",
    ),
    "a label": (lambda run: run.train.__setitem__("topic", "health"), "train is [0-9a-f]+ there and [0-9a-f]+ here"),
    "a missing label": (lambda run: run.train.loc.__setitem__((1, "topic"), None), "train is "),
    "a text": (lambda run: run.train.loc.__setitem__((1, "text"), "Hm."), "train is "),
    "the order": (lambda run: setattr(run, "train", run.train[::-1]), "train is "),
    "validation": (lambda run: setattr(run, "validation", run.validation[1:]), "validation is "),
    "the order of labels": (lambda run: run.settings.update(tasks=other_labels()), "tasks is .*topic"),
    "fewer tasks": (lambda run: run.settings.update(tasks=TASKS[:3]), "tasks is .*entities.* there and "),
    "what is frozen": (lambda run: setattr(run, "change", freeze), "parameters is "),
    "rates by layer": (
        lambda run: setattr(run, "change", lambda model: mtl_helpers.freeze(model, "layerwise_decay")),
        "freezing is .*layer 1",
    ),
    "the width": (lambda run: run.settings.update(projection=32), "parameters is "),
    "pooling": (lambda run: run.settings.update(pooling="max"), "pooling|encoder"),
    "dropout": (lambda run: run.settings.update(dropout=0.5), "dropout|head"),
    "attention heads": (lambda run: setattr(run, "change", fewer_heads), "heads|backbone|encoder|config"),
}


@pytest.mark.parametrize("change, message", OTHER_RUNS.values(), ids=OTHER_RUNS)
def test_checkpoints_of_another_run_are_refused(change: Callable, message: str, changed, stopped):
    change(changed)
    before = {path.name: path.read_bytes() for path in stopped.iterdir()}
    with pytest.raises(ValueError, match=f"belongs to another run .*({message})") as caught:
        changed.fit(stopped)
    for name in (OLDER, NEWEST):
        assert str(stopped / name) in str(caught.value)
    assert "delete them to start over, or give another directory" in str(caught.value)
    assert {path.name: path.read_bytes() for path in stopped.iterdir()} == before


@pytest.mark.parametrize("which", ["seed", "a label", "fewer tasks"])
def test_a_newer_checkpoint_of_another_run_is_passed_over(
    which: str, run, build, changed, uninterrupted, stopped, tmp_path
):
    change, message = OTHER_RUNS[which]
    change(changed)
    with failing(5):
        changed.fit(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "step-00000003.safetensors", stopped / "step-00000011.safetensors")
    # seen from here, there and here have changed places
    message = {"seed": "seed is 1 there and 0 here"}.get(which, message.split(" ")[0])
    with pytest.warns(UserWarning, match=f"step-00000011.safetensors: belongs to another run .*{message}"):
        assert run(stopped, model=scrambled(build())) == uninterrupted


def test_two_newer_ones_are_passed_over_with_a_warning_each(run, build, uninterrupted, stopped):
    for name in ("step-00000011.safetensors", "step-00000012.safetensors"):
        (stopped / name).write_bytes(b"")
    with pytest.warns(UserWarning) as caught:
        assert run(stopped, model=scrambled(build())) == uninterrupted
    messages = sorted(str(warning.message) for warning in caught)
    assert [Path(message.split(": ")[0]).name for message in messages] == [
        "step-00000011.safetensors",
        "step-00000012.safetensors",
    ]


def test_if_none_can_be_used_all_are_named(changed, stopped):
    os.truncate(stopped / NEWEST, 1000)
    changed.config = replace(CONFIG, learning_rate=0.5)
    with pytest.raises(ValueError, match="no usable checkpoint") as caught:
        changed.fit(stopped)
    newest, older = str(caught.value).splitlines()[1:]
    assert NEWEST in newest and "truncated or damaged" in newest
    assert OLDER in older and "learning_rate is 0.003 there and 0.5 here" in older
    assert checkpoints_in(stopped) == [OLDER, NEWEST]


# ----------------------------------------------------------------------------------------------------------- SIGKILL

SCRIPT = """
import json, os, random, signal, sys, time
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file

from mtl_helpers import MultiTaskModel, TrainingConfig, fit

torch.set_num_threads(1)
folder, delay, kills = Path(sys.argv[1]), random.Random(0), {}


def train():
    model = MultiTaskModel.from_pretrained(folder / "start")
    tables = [pd.read_pickle(folder / f"{name}.pickle") for name in ("train", "validation")]
    history = fit(model, *tables, TrainingConfig(**json.loads((folder / "config.json").read_text())), folder / "run")
    save_file(model.state_dict(), folder / "final.safetensors")
    pd.to_pickle(history, folder / "history.pickle")


def state():
    return sorted(path.name for path in (folder / "run").glob("step-*")), (folder / "run" / "partial").exists()


def moment(how, before):  # a child at work is killed as it loads, as it writes, or somewhere behind a checkpoint
    return how == "early" or (state()[1] if how == "partial" else state()[0] != before)


while True:
    how, before = delay.choice(["early", "partial", "partial", "step", "step"]), state()[0]
    child = os.fork()
    if child == 0:
        train()
        os._exit(0)
    if sum(kills.values()) < 10:
        while not moment(how, before) and not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            time.sleep(0.0002)
        time.sleep(delay.random() * {"early": 0.2, "partial": 0.0, "step": 0.02}[how])
        os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        break
    kills[how] = kills.get(how, 0) + 1
print(json.dumps(kills))
sys.exit(os.WEXITSTATUS(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks, so that its children need no imports")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(build, train, validation, tmp_path):
    config = replace(CONFIG, epochs=8, checkpoint_every=1, patience=None)
    build().save_pretrained(tmp_path / "start")
    train.to_pickle(tmp_path / "train.pickle")
    validation.to_pickle(tmp_path / "validation.pickle")
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert found.returncode == 0, found.stderr
    assert "another run" not in found.stderr and "damaged" not in found.stderr
    kills = json.loads(found.stdout.splitlines()[-1])
    assert kills.get("partial", 0) > 0 and kills.get("step", 0) > 0, kills

    model = MultiTaskModel.from_pretrained(tmp_path / "start")
    history = fit(model, train, validation, config)
    assert_same_history(pd.read_pickle(tmp_path / "history.pickle"), history)
    assert_identical(load_file(tmp_path / "final.safetensors"), dict(sorted(weights(model).items())))
    assert len(history.steps) == 40
