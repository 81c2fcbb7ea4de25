"""Weights of losses: against the papers' equations, worked out by hand, and against the plain sum of the losses."""

import itertools
import math
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from exactly import CONFIG, NAMES, assert_identical, weights
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.balancing_methods import DynamicWeightAverage, GradNorm, project_conflicts
from mtl_helpers import TASKS, MultiTaskModel, TaskSampling, fit, freeze
from mtl_helpers.balancing import BALANCING, LossBalance, UncertaintyWeights
from mtl_helpers.optimization import make_balance, make_optimizer, train_step
from mtl_helpers.tasks import IGNORE

pytest_plugins = ["training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")
LEARNT = ("uncertainty", "dynamic_weight_average", "gradnorm")  # methods that change the weights
COMPARING = ("gradnorm", "pcgrad")  # methods that compare gradients
FACTORS = {"topic": 2.0, "sentence_type": 0.5, "sentiment": 1.0, "entities": 3.0}
PLAIN = replace(CONFIG, patience=None)
FREE = replace(PLAIN, max_norm=math.inf, task_weights=FACTORS)


def by_task(*values: float | None) -> dict[str, float]:
    """{task: value}; None: the task isn't there."""
    return {name: value for name, value in zip("abcd", values, strict=False) if value is not None}


def test_methods_are_registered_by_the_module_that_has_them():
    """Once it is imported, as here, settings accept them; else what there is gets named."""
    code = """if True:
        from mtl_helpers import TrainingConfig
        try:
            TrainingConfig(balancing="gradnorm")
        except ValueError as error:
            print(error)
        import experiments.balancing_methods
        print(TrainingConfig(balancing="gradnorm").balancing)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout == "TrainingConfig: balancing is 'gradnorm', expected one of fixed, uncertainty\ngradnorm\n"


@pytest.mark.parametrize("balancing", BALANCING)
def test_every_method_starts_from_the_factors_of_the_settings(balancing: str, build):
    config = replace(CONFIG, balancing=balancing, task_weights={"topic": 0.5, "sentiment": 0, "entities": 10})
    balance, factors = make_balance(build(), config), {"topic": 0.5, "sentence_type": 1, "sentiment": 0, "entities": 10}
    assert type(balance) is BALANCING[balancing]
    assert balance.current() == factors
    if balancing in ("fixed", "pcgrad"):
        balance.end_step({"topic": 3.0})
        balance.end_epoch({"topic": 3.0, "entities": 0.1})
        assert balance.current() == factors


def random_losses(seed: int) -> list[dict[str, float]]:
    """Twenty steps of three tasks; each is missing in some, all are missing in one."""
    random = np.random.default_rng(seed)
    rows = random.lognormal(0, 1, (20, 3)).tolist()
    steps = [by_task(*(x if random.random() < 0.8 else None for x in row)) for row in rows]
    return [*steps[:10], {}, *steps[10:]]


FACTOR = by_task(1.0, 2.0, 0.5)


@pytest.mark.parametrize("seed", range(5))
def test_uncertainty_minimises_the_loss_of_the_paper(seed: int):
    balance, s = UncertaintyWeights(FACTOR), torch.zeros(3, requires_grad=True)
    adam = torch.optim.Adam([s], lr=0.025)
    for losses in random_losses(seed):
        balance.end_step(losses)
        terms = [(-s[i]).exp() * FACTOR[n] * losses[n] + s[i] / 2 for i, n in enumerate("abc") if n in losses]
        s.grad = torch.zeros(3)
        (sum(terms) + 0 * s.sum()).backward()
        adam.step()
        torch.testing.assert_close(balance.weights, (-s).exp().detach())


@pytest.mark.parametrize("absent", [None, math.nan])
def test_dynamic_weights_are_a_softmax_of_speeds(absent: float | None):
    """K softmax(w / 2), equation 7 of Liu et al. 2019; a task that was missing is compared with its last epoch."""
    balance, last = DynamicWeightAverage(FACTOR), {}
    for losses in random_losses(0):
        balance.end_epoch(losses if absent is None else dict.fromkeys("abc", absent) | losses)
        powers = [math.exp(losses[n] / last[n] / 2 if n in losses and n in last else 0.5) for n in "abc"]
        assert balance.weights.tolist() == pytest.approx([3 * power / sum(powers) for power in powers], rel=1e-4)
        last |= losses


@pytest.mark.parametrize("seed", range(5))
def test_gradnorm_minimises_the_distance_of_the_paper(seed: int):
    """Lengths of w g against their mean times (relative rate)^1.5, a constant: Chen et al. 2018, equations 1 and 2."""
    balance, w, first = GradNorm(FACTOR), torch.ones(3, requires_grad=True), {}
    adam, random = torch.optim.Adam([w], lr=0.025), np.random.default_rng(seed)
    for losses in random_losses(seed) * 4:
        balance.lengths = {name: random.lognormal(0, 2) for name in losses}
        balance.end_step(losses)
        scaled = {n: w[i] * balance.lengths[n] for i, n in enumerate("abc") if n in losses}
        first = losses | first
        rates = {n: losses[n] / first[n] for n in losses}
        w.grad = torch.zeros(3)
        for n in losses:
            target = np.mean([g.item() for g in scaled.values()]) * (rates[n] / np.mean(list(rates.values()))) ** 1.5
            ((scaled[n] - target).abs() if len(losses) > 1 else 0 * scaled[n]).backward(retain_graph=True)
        adam.step()
        w.data = w.data.clamp(min=1e-3) * 3 / w.data.clamp(min=1e-3).sum()
        torch.testing.assert_close(balance.weights, w.detach(), rtol=1e-4, atol=1e-5)
        assert (balance.weights > 0).all()


def test_gradnorm_leaves_every_task_some_weight():
    """However long one gradient is: Adam's steps alone would take its weight below zero."""
    balance = GradNorm(FACTOR)
    for _ in range(100):
        balance.lengths = by_task(1000.0, 0.001, 0.001)
        balance.end_step(by_task(1.0, 1.0, 1.0))
        assert balance.weights.min() > 0 and balance.weights.sum() == pytest.approx(3)
    assert balance.weights[0] < 0.01


def algorithm_1(gradients: np.ndarray) -> np.ndarray:
    """Yu et al. 2020, line by line; the others in the order of torch.randperm."""
    results = []
    for i, gradient in enumerate(gradients):
        projected = gradient
        for other in (j for j in torch.randperm(len(gradients)).tolist() if j != i):
            if np.dot(projected, gradients[other]) < 0:
                share = np.dot(projected, gradients[other]) / np.linalg.norm(gradients[other]) ** 2
                projected = projected - share * gradients[other]
        results.append(projected)
    return np.stack(results)


def test_surgery_is_the_algorithm_of_the_paper():
    for tasks, seed in itertools.product((2, 3, 5), range(20)):
        gradients = torch.tensor(np.random.default_rng(seed).normal(size=(tasks, 7)))
        gradients[seed % 8 :: 8] = 0.0  # what has no direction conflicts with nothing
        torch.manual_seed(seed)
        expected = algorithm_1(gradients.numpy())
        torch.manual_seed(seed)
        before = gradients.clone()
        np.testing.assert_allclose(project_conflicts(gradients).numpy(), expected, rtol=1e-9, atol=1e-12)
        assert torch.equal(gradients, before)


@pytest.fixture
def batches(model: MultiTaskModel, full: pd.DataFrame) -> dict[str, dict]:
    """Rows labelled for all tasks, and a dozen as four data sets: each task has three rows that no other has."""
    apart = full.copy()
    for i, name in enumerate(NAMES):
        apart.loc[[row for row in range(12) if row // 3 != i], name] = None
    return {name: model.batch(model.examples(rows)) for name, rows in (("for all", full[:8]), ("apart", apart))}


def take_gradients(model: MultiTaskModel) -> dict[str, Tensor]:
    """Gradients, by name; missing ones are zero."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in trained.items()}
    model.zero_grad()
    return gradients


def gradients_of(model: MultiTaskModel, batch: dict, balancing: str, seed: int = 0) -> dict[str, Tensor]:
    """Gradients of a step that is not taken."""
    config = replace(FREE, balancing=balancing)
    optimizer = make_optimizer(model, config)
    optimizer.step = optimizer.zero_grad = lambda: None
    torch.manual_seed(seed)
    train_step(model, optimizer, batch, config)
    return take_gradients(model)


def weighted_losses(model: MultiTaskModel, logits: dict[str, Tensor], batch: dict) -> list[Tensor]:
    """Of the tasks that have a label."""
    losses = model.loss(logits, batch["labels"])
    return [FACTORS[name] * losses[name] for name in NAMES if (batch["labels"][name] != IGNORE).any()]


def plain_gradients(model: MultiTaskModel, batch: dict) -> dict[str, Tensor]:
    """Of the weighted sum, by one ordinary backward pass."""
    torch.stack(weighted_losses(model, model(batch), batch)).sum().backward()
    return take_gradients(model)


def losses_through(balance: LossBalance, model: MultiTaskModel, batch: dict) -> dict[str, Tensor]:
    return model.loss(balance.logits(model, model.encoder.hidden(batch), batch), batch["labels"])


def assert_close(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert any(tensor.abs().max() > 0.01 for tensor in expected.values())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_gradnorm_scales_gradients_by_its_weights_and_measures_them_without(model, batches):
    batch, balance = batches["for all"], GradNorm(FACTORS)
    balance.weights = torch.tensor([0.5, 2.0, 0.25, 1.25])
    balance.backward(losses_through(balance, model, batch))
    scaled = take_gradients(model)
    losses = weighted_losses(model, model(batch), batch)
    (0.5 * losses[0] + 2 * losses[1] + 0.25 * losses[2] + 1.25 * losses[3]).backward()
    assert_close(scaled, take_gradients(model))
    states, mask = model.encoder.hidden(batch)[-1], batch["attention_mask"]
    pooled = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    for task in TASKS:
        scores = model.heads[task.name](pooled if task.level == "sentence" else states)
        loss = F.cross_entropy(scores.flatten(0, -2), batch["labels"][task.name].flatten(), ignore_index=IGNORE)
        [gradient] = torch.autograd.grad(FACTORS[task.name] * loss, states, retain_graph=True)
        assert balance.lengths[task.name] == pytest.approx(gradient.square().sum().sqrt().item(), rel=1e-4)


@pytest.mark.parametrize("rows", ["for all", "apart"])
def test_surgery_compares_the_shared_states_or_rows_of_their_own_in_the_encoder(rows: str, model, batches):
    batch, seed = batches[rows], 1
    plain = plain_gradients(model, batch)
    names = [name for name in plain if name.startswith("encoder.")]
    states = model.encoder.hidden(batch)  # the graph stays in one piece
    losses = weighted_losses(model, model.answer(states, batch), batch)
    shared = [states[-1]] if rows == "for all" else [dict(model.named_parameters())[name] for name in names]
    gradients = [torch.autograd.grad(loss, shared, retain_graph=True, materialize_grads=True) for loss in losses]
    torch.manual_seed(seed)
    flat = np.stack([torch.cat([piece.flatten() for piece in own]).double().numpy() for own in gradients])
    after = torch.tensor(algorithm_1(flat).sum(0)).float().split([tensor.numel() for tensor in shared])
    pieces = [piece.view_as(tensor) for piece, tensor in zip(after, shared, strict=True)]
    if rows == "for all":
        states[-1].backward(pieces[0])
        pieces = list(map(take_gradients(model).get, names))
    actual = gradients_of(model, batch, "pcgrad", seed)
    assert_close(actual, plain | dict(zip(names, pieces, strict=True)))
    assert max((actual[name] - plain[name]).abs().max() for name in names) > 1e-3  # there was a conflict


@pytest.mark.parametrize(
    "balancing, rows, back",
    [
        *((name, rows, 1) for name in BALANCING if name != "pcgrad" for rows in ("for all", "apart")),
        ("pcgrad", "for all", 1),
        ("pcgrad", "apart", 4),
    ],
)
def test_the_encoder_runs_once_and_is_passed_back_as_rarely_as_possible(balancing, rows, back, model, batches):
    passes = Counter()

    def count(module: nn.Module, inputs: tuple, output: Tensor) -> None:
        passes["forth"] += 1
        output.register_hook(lambda gradient: passes.update(["back"]))

    model.encoder.backbone.embeddings.LayerNorm.register_forward_hook(count)
    gradients = gradients_of(model, batches[rows], balancing)
    assert passes == {"forth": 1, "back": back}
    if balancing != "pcgrad":
        assert_close(gradients, plain_gradients(model, batches[rows]))


def test_conflicts_are_the_share_of_ordered_pairs(model, batches):
    balance = BALANCING["pcgrad"](FACTORS)
    for basis, noted in (
        ([[1, 0], [-1, 1], [0, 1]], {"conflicts": pytest.approx(1 / 3)}),  # only the first two conflict
        ([[1, 0]], {}),  # there is no pair
    ):
        losses_through(balance, model, batches["for all"])
        gradients = torch.zeros(len(basis), *balance.leaf.shape)
        gradients[:, 0, 0, :2] = torch.tensor(basis, dtype=torch.float32)
        balance.pass_on(dict(zip(NAMES, gradients, strict=False)))
        assert balance.noted == noted


@pytest.mark.parametrize("balancing", BALANCING)
def test_the_history_says_what_each_loss_was_multiplied_with(balancing: str, build, partly, validation):
    config = replace(PLAIN, balancing=balancing, task_weights={"topic": 0.5, "entities": 10})
    steps = fit(build(), partly, validation, config).to_frame("steps")
    factors = {"topic": 0.5, "sentence_type": 1.0, "sentiment": 1.0, "entities": 10.0}
    learnt = steps[[f"{name}_weight" for name in NAMES]] / list(factors.values())
    assert learnt.iloc[0].tolist() == [1.0] * 4
    assert (learnt > 0).all(axis=None)
    assert (learnt.nunique() > 1).all() == (balancing in LEARNT)
    if balancing in ("dynamic_weight_average", "gradnorm"):
        assert learnt.sum(axis=1).tolist() == pytest.approx([4.0] * len(learnt))
    if balancing == "dynamic_weight_average":
        assert learnt[steps["epoch"] <= 2].eq(1).all(axis=None)
        assert learnt[steps["epoch"] == 3].nunique().tolist() == [1] * 4  # the same all through the epoch
    assert ("conflicts" in steps) == (balancing == "pcgrad")
    if balancing == "pcgrad":
        assert steps["conflicts"].between(0, 1).all()
        assert steps["conflicts"].nunique() > 1


@pytest.mark.parametrize("balancing", COMPARING)
def test_batches_of_one_task_train_as_with_fixed_factors(balancing: str, build, separate, validation):
    """There is nothing to compare its gradient with."""
    config = replace(PLAIN, epochs=2, sampling=TaskSampling(alpha=0.0, order="round_robin"))
    plain, steps = (
        fit(build(tasks=(TASKS[0], TASKS[2])), separate, validation, replace(config, balancing=name)).to_frame("steps")
        for name in ("fixed", balancing)
    )
    assert list(steps) == list(plain)  # no conflicts among them
    for name in ("topic", "sentiment"):
        assert steps[f"{name}_loss"].tolist() == pytest.approx(plain[f"{name}_loss"].tolist(), rel=1e-3, nan_ok=True)
        assert steps[f"{name}_weight"].eq(1).all()


@pytest.mark.parametrize("balancing", COMPARING)
def test_layers_that_thaw_later_are_balanced_from_then_on(balancing: str, build, partly, validation):
    """And a step without a label has no conflicts: not those of the step before, which a resumed run doesn't know."""
    rows, model = partly[:5].copy(), build()
    rows.loc[2, NAMES] = None
    freeze(model, "probe_then_finetune", epochs=1)
    config = replace(PLAIN, balancing=balancing, max_tokens=1)  # each row is a step
    steps = fit(model, rows, validation, config).to_frame("steps")
    first, silent = steps["epoch"] == 1, (steps[[f"{name}_labels" for name in NAMES]] == 0).all(axis=1)
    assert silent.sum() == 3
    if balancing == "pcgrad":
        assert steps["conflicts"].isna().tolist() == (first | silent).tolist()
    else:
        assert (steps[first]["topic_weight"] == 1).all()
        assert steps[~first]["topic_weight"].nunique() > 2


@pytest.mark.parametrize("balancing", COMPARING)
def test_gradients_can_not_be_compared_under_a_pooling_of_several_layers(balancing, build, full, validation):
    model = build(pooling="last_layers")
    before = weights(model)
    with pytest.raises(ValueError, match="pooling is 'last_layers', expected one of the last layer"):
        fit(model, full, validation, replace(PLAIN, balancing=balancing))
    assert_identical(weights(model), before)
