"""The training loop: rates, one step, validation, and what `fit` promises of a run from start to end."""

import json
import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from exactly import CONFIG, NAMES, STEPS, assert_identical, assert_same_history, scripted, weights
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import experiments.balancing_methods  # noqa: F401
from mtl_helpers import MultiTaskModel, SentenceEncoder, Task, TrainingConfig, fit, freeze, training
from mtl_helpers.backbones import layers_of
from mtl_helpers.optimization import learning_rate_factor, make_balance, make_optimizer, train_step
from mtl_helpers.tasks import IGNORE

pytest_plugins = ["training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


def factors(total: int, **settings) -> np.ndarray:
    return np.array([learning_rate_factor(step, total, TrainingConfig(**settings)) for step in range(total)])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "step", "constant"])
@given(st.integers(1, 300), st.floats(0, 0.99))
def test_rates_rise_evenly_to_the_peak_and_never_again(schedule: str, total: int, warmup: float):
    shares, rising = factors(total, schedule=schedule, warmup=warmup), math.ceil(warmup * total)
    assert (shares > 0).all()
    assert shares[:rising] == pytest.approx(np.arange(1, rising + 1) / max(rising, 1))
    assert shares[rising - 1 if rising else 0] == 1 == shares.max()
    assert (np.diff(shares[rising:]) <= 0).all()


@pytest.mark.parametrize("total, warmup", [(40, 10), (37, 5), (20, 0), (1, 0)])
def test_schedules_are_those_of_transformers_and_their_names(total: int, warmup: int):
    """But for the warm-up, which begins one step later there: with a rate of zero."""
    for schedule in ("linear", "cosine"):
        make = getattr(transformers, f"get_{schedule}_schedule_with_warmup")
        theirs = make(torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0), warmup, total).lr_lambdas[0]
        expected = [theirs(step + 1 if step < warmup else step) for step in range(total)]
        assert factors(total, schedule=schedule, warmup=warmup / total) == pytest.approx(expected)
    last_third = [0.1 if 3 * step >= 2 * total else 1.0 for step in range(total)]
    assert factors(total, schedule="step", warmup=0).tolist() == last_third
    assert factors(total, schedule="constant", warmup=0).tolist() == [1.0] * total


def groups_of(model: nn.Module, **settings) -> dict[str, dict]:
    """{name of parameter: its group}, each parameter in one group."""
    optimizer = make_optimizer(model, replace(CONFIG, **settings))
    assert type(optimizer) is {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[settings.get("optimizer", "adamw")]
    names = {parameter: name for name, parameter in model.named_parameters()}
    pairs = [(names[parameter], group) for group in optimizer.param_groups for parameter in group["params"]]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


@pytest.mark.parametrize("head, projection, optimizer", [("linear", None, "adam"), ("mlp", 16, "adamw")])
def test_matrices_are_decayed_and_heads_have_their_own_rate(head, projection, optimizer, family_dirs):
    model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"], projection=projection), head=head)
    trained = {name for name, _ in model.named_parameters() if "pooler" not in name}
    groups = groups_of(model, learning_rate=0.1, head_learning_rate=0.2, weight_decay=0.3, optimizer=optimizer)
    assert set(groups) == trained
    for name, group in groups.items():
        vector = name.endswith("bias") or "LayerNorm" in name or name.startswith("encoder.projection.2")
        assert group["weight_decay"] == (0.0 if vector else 0.3), name
        assert group["lr"] == group["peak"] == (0.2 if name.startswith("heads.") else 0.1), name
    same = groups_of(model, learning_rate=0.1, head_learning_rate=0.1, weight_decay=0.0)
    assert set(same) == trained and len({id(group) for group in same.values()}) == 1
    model.encoder.requires_grad_(False)
    assert {name.partition(".")[0] for name in groups_of(model)} == {"heads"}
    with pytest.raises(ValueError, match="every parameter is frozen"):
        groups_of(model.requires_grad_(False))


FREE = replace(CONFIG, max_norm=math.inf, task_weights=dict.fromkeys(NAMES, 1.0))


@pytest.fixture
def gradients(model: MultiTaskModel, partly: pd.DataFrame) -> Callable:
    """Function that gives gradients (missing ones are zero), losses and norm of a step that is not taken."""
    examples = model.examples(partly)

    def gradients(rows=range(12), config: TrainingConfig = FREE) -> tuple[dict[str, Tensor], dict[str, float], float]:
        optimizer = make_optimizer(model, config)
        optimizer.step = optimizer.zero_grad = lambda: None
        losses, norm = train_step(model, optimizer, model.batch([examples[i] for i in rows]), config)
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        taken = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}
        model.zero_grad()
        return taken, losses, norm

    return gradients


def test_losses_are_means_over_labels_for_sentences_and_tokens_alike(model, partly, gradients):
    batch = model.batch(model.examples(partly))
    expected = {name: loss.item() for name, loss in model.loss(model(batch), batch["labels"]).items()}
    once, losses, _ = gradients(config=replace(FREE, task_weights=FREE.task_weights | {"topic": 0.0}))
    assert losses == pytest.approx(expected, rel=1e-5)
    assert not once["heads.topic.1.weight"].any() and once["heads.entities.1.weight"].any()
    once, losses, _ = gradients()
    twice, same, _ = gradients([*range(12), *range(12)])  # neither is summed: twice the rows, the same loss and step
    assert same == pytest.approx(losses, rel=1e-4)
    torch.testing.assert_close(twice, once, rtol=1e-3, atol=1e-5)


def test_a_task_without_labels_contributes_nothing(model, partly, gradients):
    unlabelled, losses, _ = gradients([0, 3, 7])  # none of them has a topic
    assert list(losses) == NAMES[1:]
    silent = replace(FREE, task_weights={**FREE.task_weights, "topic": 0.0})
    torch.testing.assert_close(unlabelled, gradients([0, 3, 7], silent)[0], rtol=0, atol=0)
    assert not unlabelled["heads.topic.1.weight"].any() and unlabelled["heads.sentiment.1.weight"].any()
    before, batch = weights(model), model.batch(model.examples(partly[["text"]]))
    assert train_step(model, make_optimizer(model, CONFIG), batch, CONFIG) == ({}, 0.0)
    assert_identical(weights(model), before)


def test_token_tasks_weigh_the_root_of_tokens_per_span_token_unless_named(model):
    none, some = [0, 0, IGNORE, 0], [IGNORE, 1, 2, 0, 0, 0, 0, 0]  # 10 labelled tokens, 2 of them in spans
    sentence = dict.fromkeys(("topic", "sentence_type", "sentiment"), 0)
    examples = [{"labels": sentence | {"entities": codes}} for codes in (none, some, [])]
    usual = make_balance(model, TrainingConfig(), examples).factors
    assert usual == {**dict.fromkeys(sentence, 1.0), "entities": pytest.approx(math.sqrt(10 / 2))}
    named = TrainingConfig(task_weights={"entities": 4, "topic": 2})
    assert make_balance(model, named, examples).factors == {**usual, "entities": 4, "topic": 2}
    for without in ([], examples[:1], examples[2:]):
        assert make_balance(model, TrainingConfig(), without).factors["entities"] == 1.0


def test_long_gradients_are_scaled_down_and_short_ones_left(gradients):
    free, _, norm = gradients()
    assert norm == pytest.approx(sum(g.double().square().sum().item() for g in free.values()) ** 0.5, rel=1e-4)
    cut, _, before = gradients(config=replace(FREE, max_norm=norm / 4))
    assert before == norm
    torch.testing.assert_close(cut, {name: g / 4 for name, g in free.items()}, rtol=1e-3, atol=1e-7)
    torch.testing.assert_close(gradients(config=replace(FREE, max_norm=norm * 2))[0], free, rtol=0, atol=0)


def test_a_step_lowers_the_loss_and_leaves_no_gradient(model, partly):
    config, batch = replace(FREE, learning_rate=1e-3), model.batch(model.examples(partly))
    optimizer = make_optimizer(model, config)
    losses = [sum(train_step(model, optimizer, batch, config)[0].values()) for _ in range(5)]
    assert losses == sorted(losses, reverse=True)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_changes_nothing(what: str, value: float, model, partly, monkeypatch):
    optimizer, before, batch = make_optimizer(model, CONFIG), weights(model), model.batch(model.examples(partly))
    message = f"the loss of task 'sentiment' is {value}"
    if what == "loss":
        loss = model.loss
        monkeypatch.setattr(model, "loss", lambda *args: loss(*args) | {"sentiment": loss(*args)["sentiment"] * value})
    else:
        model.heads["sentiment"][1].weight.register_hook(lambda gradient: gradient * value)
        message = r"the gradient of topic \+ .*sentiment.* has the length (nan|inf)"
    with pytest.raises(FloatingPointError, match=message):
        train_step(model, optimizer, batch, CONFIG)
    assert_identical(weights(model), before)
    assert not optimizer.state and all(parameter.grad is None for parameter in model.parameters())


def test_the_history_has_the_columns_it_says_and_losses_are_means_over_labels(build, partly, validation):
    history = fit(build(), partly, validation, CONFIG)
    epochs, steps = history.to_frame(), history.to_frame("steps")
    columns = ["epoch", "task", "train_loss", "validation_loss", "accuracy", "score", "epochs_seen"]
    assert list(epochs) == columns
    assert epochs[["epoch", "task"]].to_numpy().tolist() == [[epoch, name] for epoch in (1, 2, 3) for name in NAMES]
    kinds = [f"{name}_{kind}" for name in NAMES for kind in ("loss", "weight", "labels")]
    assert set(steps) == {"step", "epoch", "seconds", "learning_rate", "gradient_norm", *kinds}
    assert steps["step"].tolist() == list(range(1, STEPS + 1))
    assert steps["epoch"].tolist() == [1] * 5 + [2] * 5 + [3] * 5
    assert steps["seconds"].is_monotonic_increasing and steps["seconds"].iloc[0] >= 0
    rates = [CONFIG.learning_rate * learning_rate_factor(step, STEPS, CONFIG) for step in range(STEPS)]
    assert steps["learning_rate"].tolist() == rates and (steps["gradient_norm"] > 0).all()
    for name in NAMES:
        rows = epochs[epochs["task"] == name]
        assert rows["epochs_seen"].tolist() == [1.0, 2.0, 3.0]
        assert steps[f"{name}_labels"].sum() == 3 * partly[name].notna().sum()
        for epoch, loss in zip(rows["epoch"], rows["train_loss"], strict=True):
            own = steps[(steps["epoch"] == epoch) & (steps[f"{name}_labels"] > 0)]
            assert loss == pytest.approx(np.average(own[f"{name}_loss"], weights=own[f"{name}_labels"]))


@pytest.mark.parametrize(
    "scores, settings, epochs, kept",
    [
        ([0.1, 0.2, 0.3], {}, 3, 3),
        ([0.3, 0.2, 0.1], {}, 3, 1),
        ([0.3, 0.2, 0.1], {"keep": "last"}, 3, 3),
        ([0.2, 0.3, 0.3], {}, 3, 2),
        ([0.3, 0.2, 0.4, 0.4, 0.1, 0.9], {"epochs": 6, "patience": 2}, 5, 3),
        ([0.3, 0.2, 0.1, 0.9], {"epochs": 4, "patience": 2, "keep": "last"}, 3, 3),
        ([0.9, *[0.1] * 5], {"epochs": 6, "patience": None}, 6, 1),
    ],
)
def test_which_weights_the_model_ends_with(scores, settings, epochs, kept, build, partly, validation, monkeypatch):
    model, after = build(), []
    monkeypatch.setattr(training, "validate", scripted(scores, after))
    history = fit(model, partly, validation, replace(CONFIG, **settings))
    assert history.scores.to_dict() == pytest.approx(dict(enumerate(scores[:epochs], start=1)))
    assert history.best_epoch == 1 + int(np.argmax(scores[:epochs]))
    assert_identical(weights(model), after[kept - 1])
    assert not torch.equal(after[0]["heads.topic.1.weight"], after[1]["heads.topic.1.weight"])
    assert not any(module.training for module in model.modules())


def test_each_task_has_a_best_epoch_of_its_own(build, partly, validation, monkeypatch):
    columns = [0.1, 0.3, 0.2], [0.5, 0.5, 0.5], [math.nan] * 3, [0.0, 0.1, 0.4]
    scores = [dict(zip(NAMES, row, strict=True)) for row in zip(*columns, strict=True)]
    monkeypatch.setattr(training, "validate", scripted(scores, []))
    history = fit(build(), partly, validation, CONFIG)
    assert history.scores.tolist() == pytest.approx([0.2, 0.3, 1.1 / 3])
    assert history.best_epoch == 3


def test_a_run_depends_on_its_seed_and_each_setting_has_an_effect(build, partly, validation):
    def ending(**settings) -> Tensor:
        model = build()
        torch.rand(3)  # what was drawn before doesn't matter
        fit(model, partly, validation, replace(CONFIG, **settings))
        return model.heads["topic"][1].weight

    usual = ending()
    assert torch.equal(ending(), usual)
    for settings in (
        *({"seed": 1}, {"optimizer": "adam"}, {"schedule": "step"}, {"max_norm": 0.1}, {"weight_decay": 0.5}),
        *({"task_weights": {"topic": 5.0}}, {"head_learning_rate": 1e-3}, {"warmup": 0.5}),
    ):
        assert not torch.equal(ending(**settings), usual), settings


@pytest.mark.parametrize(
    "strategy, options, balancing, pooling",
    [
        *(("backbone", {}, balancing, "mean") for balancing in ("fixed", "pcgrad")),
        *(("lower_layers", {"layers": 2}, balancing, "mean") for balancing in ("fixed", "gradnorm", "pcgrad")),
        ("backbone", {}, "fixed", "last_layers"),
        ("lower_layers", {"layers": 2}, "fixed", "last_layers"),
    ],
)
def test_frozen_parts_stay_as_they_are_and_may_be_cached(
    strategy, options, balancing, pooling, build, partly, validation
):
    histories = []
    for cache in (True, False):
        model, passes = build(pooling=pooling, layers=2), []
        freeze(model, strategy, **options)
        before = weights(model)
        layers_of(model.encoder.backbone)[0].register_forward_hook(lambda *_, passes=passes: passes.append(1))
        histories.append(fit(model, partly, validation, replace(CONFIG, balancing=balancing), cache=cache))
        assert len(passes) == (2 if cache else STEPS + 3)  # one batch of all training rows, one of validation
        changed = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
        assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
        assert any(name.startswith("encoder.") for name in changed) == bool(options)
    for which in ("epochs", "steps"):
        cached, plain = (history.to_frame(which).drop(columns="seconds", errors="ignore") for history in histories)
        pd.testing.assert_frame_equal(cached, plain, rtol=1e-2, atol=1e-4)


def test_what_can_not_be_started_at_a_layer_is_computed_from_the_start(build, partly, validation):
    model, passes = build(), []
    freeze(model, "lower_layers", layers=2)
    model.encoder.traits = replace(model.encoder.traits, values=None)
    layers_of(model.encoder.backbone)[0].register_forward_hook(lambda *_: passes.append(1))
    fit(model, partly, validation, CONFIG)
    assert len(passes) == STEPS + 3


def test_tables_that_say_the_same_give_the_same(build, partly, validation):
    """Whatever the index, the kind of missing value, the form of spans, the spaces around labels, the set of tasks."""
    tasks = (Task("mood", ("negative", "neutral", "positive")), Task("names", ("PER", "ORG", "LOC"), level="token"))
    partly, validation = (t.rename(columns={"sentiment": "mood", "entities": "names"}) for t in (partly, validation))
    tables = {
        "plain": partly,
        "index": partly.set_index(partly.index * 0),
        "lists": partly.assign(names=partly["names"].map(lambda spans: spans and [list(span) for span in spans])),
        "json": partly.assign(names=partly["names"].map(json.dumps)),
        "spaces": partly.assign(mood=partly["mood"].map("{}\u00a0".format, na_action="ignore")),
        **{str(kind): partly.astype(object).where(partly.notna(), kind) for kind in (math.nan, pd.NA, None)},
    }
    histories = []
    for name, table in tables.items():
        with warnings.catch_warnings(record=True, action="always") as caught:
            histories.append(fit(build(tasks=tasks), table, validation, replace(CONFIG, epochs=1)))
        same = "train: these labels differ from known ones in white space alone and are taken for them"
        assert [str(warning.message)[: len(same)] for warning in caught] == [same] * (name == "spaces")
        assert_same_history(histories[-1], histories[0])
    assert histories[0].to_frame()["task"].tolist() == ["mood", "names"]


def test_other_precisions_than_half_train(build, partly, validation):
    for model, precision, dtype in ((build(), "auto", torch.float32), (build().double(), "float32", torch.float64)):
        history = fit(model, partly, validation, replace(CONFIG, precision=precision, epochs=1))
        assert {tensor.dtype for tensor in model.parameters()} == {dtype}
        assert np.isfinite(history.to_frame("steps")["gradient_norm"]).all()


def test_bfloat16_without_hardware_is_float32_and_a_warning(build, partly, validation, monkeypatch):
    expected = fit(build(), partly, validation, CONFIG)
    for module in ("runtime", "optimization"):
        monkeypatch.setattr(f"mtl_helpers.{module}.bfloat16_is_fast", lambda device: False)
    monkeypatch.setattr("mtl_helpers.runtime._warned", set())
    automatic = fit(build(), partly, validation, replace(CONFIG, precision="auto"))  # without a warning
    assert_same_history(automatic, expected)
    with pytest.warns(UserWarning, match="no fast bfloat16"):
        assert_same_history(fit(build(), partly, validation, replace(CONFIG, precision="bfloat16")), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_weights_of_half_precision_are_refused(dtype: torch.dtype, build, partly, validation):
    for model in (build().to(dtype), build()):
        model.heads.to(dtype)
        with pytest.raises(ValueError, match=rf"the weights are {dtype}, too coarse .*; call model.float\(\)"):
            fit(model, partly, validation, CONFIG)


NO_LABEL = r"found no label in 12 rows, expected a column for one of topic, sentence_type, sentiment, entities"
UNUSABLE = {  # what else a table can lack: test_corpus.py
    "no column": (lambda rows: rows[["id", "text", "split"]], NO_LABEL),
    "no label": (lambda rows: rows.assign(**dict.fromkeys(NAMES)), NO_LABEL),
    "a label": (lambda rows: rows.assign(topic="gardening"), r"12 problems\n  row 0 .*column topic: found 'gardening'"),
}


@pytest.mark.parametrize("which", ["train", "validation"])
@pytest.mark.parametrize("spoil, message", UNUSABLE.values(), ids=UNUSABLE)
def test_a_table_that_can_not_be_used_is_refused(which: str, spoil: Callable, message: str, model, partly):
    tables, before = {"train": partly, "validation": partly} | {which: spoil(partly)}, weights(model)
    with pytest.raises(ValueError, match=f"^{which}: {message}"):
        fit(model, **tables, config=CONFIG)
    assert_identical(weights(model), before)


@pytest.mark.parametrize("setting, value", [("task_weights", {"Topic": 2.0}), ("class_balance", {"topics": "focal"})])
def test_settings_of_unknown_tasks_and_nothing_to_train_are_refused(setting: str, value: dict, model, partly):
    with pytest.raises(ValueError, match=f"{setting} names '{next(iter(value))}', expected tasks of the model"):
        fit(model, partly, partly, replace(CONFIG, **{setting: value}))
    with pytest.raises(ValueError, match="every parameter is frozen"):
        fit(model.requires_grad_(False), partly, partly, CONFIG)


@pytest.mark.parametrize("missing", ["column", "cells"])
def test_a_task_without_labels_is_warned_of(missing: str, build, partly, validation):
    def without(table: pd.DataFrame, *names: str) -> pd.DataFrame:
        return table.drop(columns=[*names]) if missing == "column" else table.assign(**dict.fromkeys(names))

    model = build()
    before = model.heads["sentiment"][1].weight.detach().clone()
    with pytest.warns(UserWarning) as caught:
        history = fit(model, without(partly, "sentiment"), without(validation, "topic", "entities"), CONFIG)
    expected = "train has no label for sentiment", "validation has no label for topic, entities"
    assert [(str(w.message), w.filename) for w in caught] == [(message, __file__) for message in expected]
    assert torch.equal(model.heads["sentiment"][1].weight, before)  # no gradient, so no decay either
    assert not any(name.startswith("sentiment_loss") for name in history.to_frame("steps"))
    epochs = history.to_frame()
    assert epochs["train_loss"].isna().tolist() == [False, False, True, False] * 3
    assert epochs["epochs_seen"][2::4].tolist() == [0.0] * 3
    for column in ("score", "validation_loss", "accuracy"):
        assert epochs[column].isna().tolist() == [True, False, False, True] * 3
    assert history.scores.notna().all()
