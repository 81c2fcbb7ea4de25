"""Runs that are stopped, killed, damaged and mistaken for each other: they end to the bit as if nothing had been."""

import itertools
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from exactly import CONFIG, STEPS, assert_identical, assert_same_history, scripted, stopping, weights
from torch import Tensor

import experiments.balancing_methods  # noqa: F401  (its methods belong to BALANCING then)
from mtl_helpers import TASKS, History, MultiTaskModel, Task, TaskSampling, TrainingConfig, fit, freeze, training
from mtl_helpers.balancing import BALANCING
from mtl_helpers.folders import sha256_of

pytest_plugins = ["training_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass
class Result:
    """What a run left: the model's weights, the history, the state in the last checkpoint; and the steps it took."""

    weights: dict[str, Tensor]
    history: History
    state: dict
    steps: int

    def __eq__(self, other: "Result") -> bool:
        assert_identical(self.weights, other.weights)
        assert_same_history(self.history, other.history)
        torch.testing.assert_close(self.state, other.state, rtol=0, atol=0, equal_nan=True)
        return True


@pytest.fixture(scope="module")
def run(build, partly, validation) -> Callable[..., Result]:
    """Function that runs `fit` on a tiny model, by default one of its own, always the same."""

    def run(directory: Path, config: TrainingConfig = CONFIG, model: MultiTaskModel | None = None) -> Result:
        model, steps, train_step = model or build(), [], training.train_step
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "train_step", lambda *args: steps.append(1) or train_step(*args))
            torch.rand(17)  # what was drawn before doesn't matter
            history = fit(model, partly, validation, config, directory)
        assert not any(module.training for module in model.modules())
        assert history.to_frame("steps")["seconds"].is_monotonic_increasing
        state = torch.load(max(directory.glob("run-*-step-*.pt")), weights_only=True)["state"]
        del state["history"]
        return Result(weights(model), history, state, len(steps))

    return run


@pytest.fixture(scope="module")
def kept() -> dict:
    """Uninterrupted runs with other settings."""
    return {}


@pytest.fixture(scope="module")
def uninterrupted(run, tmp_path_factory) -> Result:
    """A run with CONFIG from start to end."""
    return run(tmp_path_factory.mktemp("uninterrupted"))


@pytest.fixture(scope="module")
def stopped_once(run, tmp_path_factory) -> Path:
    with stopping(12):
        run(directory := tmp_path_factory.mktemp("stopped"))
    return directory


@pytest.fixture
def stopped(stopped_once, tmp_path) -> Path:
    """A directory of the test's own with the checkpoints of steps 9 and 10 of that run, stopped in step 12."""
    return Path(shutil.copytree(stopped_once, tmp_path / "stopped"))


def steps_in(directory: Path) -> list[int]:
    """Steps of the checkpoints in a directory, which holds nothing else."""
    names = [path.name for path in directory.iterdir()]
    return sorted(int(re.fullmatch(r"run-\w{8}-step-(\d{8})-\w{12}\.pt", name)[1]) for name in names)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("at, first", [(1, 0), (3, 0), (4, 3), (6, 5), (10, 9), (11, 10), (STEPS, 12)])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_been(at: int, first: int, run, uninterrupted, tmp_path):
    """Checkpoints lie behind steps 3, 5, 6, 9, 10, 12 and 15."""
    with stopping(at):
        run(tmp_path)
    again = run(tmp_path)
    assert again == uninterrupted and again.steps == STEPS - first
    assert steps_in(tmp_path) == [12, 15]


SETTINGS = [
    *({"balancing": name, "keep": "last"} for name in BALANCING if name != "fixed"),
    {"sampling": TaskSampling(alpha=1.0, final_alpha=0.2, order="mixed", rows=14)},
    {"schedule": "step", "optimizer": "adam", "class_balance": {"topic": "inverse"}},
    *({"family": name, "epochs": 2, "checkpoint_every": 2} for name in ("distilbert", "electra")),
    {"freeze": ("probe_then_finetune", {"epochs": 1}), "keep": "last"},
    {"freeze": ("lower_layers", {"layers": 2})},
    {"freeze": ("lora", {"rank": 2})},
]


@pytest.mark.parametrize("at", [8, 11])  # within an epoch, and at the end of one
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_whatever_is_set_a_stopped_run_ends_as_one_that_was_not(settings: dict, at: int, run, build, kept, tmp_path):
    family, freezing = settings.get("family", "bert"), settings.get("freeze", ("full_training", {}))
    config = replace(CONFIG, **{name: value for name, value in settings.items() if hasattr(CONFIG, name)})

    def model() -> MultiTaskModel:
        model = build(family=family)
        freeze(model, freezing[0], **freezing[1])
        return model

    if str(settings) not in kept:
        kept[str(settings)] = run(tmp_path / "whole", config, model())
    if at < len(kept[str(settings)].history.steps):
        with stopping(at):
            run(tmp_path / "stopped", config, model())
        again = run(tmp_path / "stopped", config, model())
        assert again == kept[str(settings)] and 0 < again.steps < len(again.history.steps) - 4


def test_a_run_that_is_stopped_at_every_second_step_and_in_validation_gets_to_its_end(run, uninterrupted, tmp_path):
    often = replace(CONFIG, checkpoint_every=1)
    for step in range(1, STEPS):
        with stopping(2):
            run(tmp_path, often)
        assert steps_in(tmp_path) == [step - 1, step][step == 1 :]
        if step % 5 == 4:  # the next step ends an epoch
            with stopping(1, "validate"):
                run(tmp_path, often)
    assert run(tmp_path, replace(CONFIG, checkpoint_every=7)) == uninterrupted  # other intervals are no other run


@pytest.mark.parametrize("at", [5, 9])
def test_a_model_that_was_stopped_in_memory_may_go_on(at: int, run, build, uninterrupted, tmp_path, monkeypatch):
    """With the weights of step 4, or of the best epoch: what counts is where its run started."""
    model = build()
    for call in (at, at // 2):
        with stopping(call):
            run(tmp_path, model=model)
    first, files = run(tmp_path, model=model), contents(tmp_path)
    assert first == uninterrupted
    monkeypatch.setattr(training, "validate", None)  # nothing is left to do, for this model or another
    for again in (run(tmp_path, model=model), run(tmp_path)):
        assert again == first and again.steps == 0
        assert asdict(again.history) == asdict(first.history)  # seconds too
    assert contents(tmp_path) == files


def test_patience_counts_on_over_an_interruption(run, tmp_path, monkeypatch):
    scores, config, after = [0.3, 0.2, 0.4, 0.4, 0.1, 0.9, 0.9], replace(CONFIG, epochs=7, patience=2), []
    monkeypatch.setattr(training, "validate", scripted(scores, after))
    with stopping(22):
        run(tmp_path, config)
    assert len(after) == 4
    for _ in range(2):  # the second time nothing is left to do
        again = run(tmp_path, config)
        assert len(after) == 5 and again.history.scores.tolist() == pytest.approx(scores[:5])
        assert_identical(again.weights, after[2])


def test_the_directory_is_made_where_it_is_named_and_none_without(build, partly, validation, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    fit(build(), partly, validation, replace(CONFIG, epochs=1))
    assert list(tmp_path.iterdir()) == []
    fit(build(), partly, validation, replace(CONFIG, epochs=1), "~/some/run")
    assert steps_in(tmp_path / "home" / "some" / "run") == [3, 5] and not (tmp_path / "~").exists()


HELD = "; the model holds its last weights; no checkpoint was written"
BEST = "; the model holds the weights of epoch 1, the best so far; "


@pytest.mark.parametrize(
    "at, given, value, message",
    [
        (1, True, None, f"stopped in step 1 of 15 (epoch 1){HELD} yet"),
        (4, False, None, f"stopped in step 4 of 15 (epoch 1){HELD}; give fit a directory"),
        (6, True, None, f"stopped in step 6 of 15 (epoch 2){BEST}call fit again with the same arguments: checkp"),
        (12, False, None, f"stopped in step 12 of 15 (epoch 3){BEST}no checkpoint was written; give fit a directory"),
        (2, True, math.nan, "the loss of task 'entities' is nan in step 2 of 15 (epoch 1); the model holds its last"),
        (8, True, math.inf, f"the loss of task 'entities' is inf in step 8 of 15 (epoch 2){BEST}try a lower learning"),
    ],
)
def test_a_stopped_run_says_where_it_was_and_how_to_go_on(
    at, given, value, message, build, partly, validation, tmp_path, monkeypatch
):
    model, after, calls = build(), [], itertools.count(1)
    before, loss = weights(model), model.loss

    def broken(*args) -> dict[str, Tensor]:
        losses = loss(*args)
        if next(calls) == at:
            if value is None:
                raise KeyboardInterrupt
            losses["entities"] = losses["entities"] * value
        return losses

    monkeypatch.setattr(training, "validate", scripted([0.3, 0.2, 0.1], after))
    monkeypatch.setattr(model, "loss", broken)
    with pytest.raises(KeyboardInterrupt if value is None else FloatingPointError) as caught:
        fit(model, partly, validation, CONFIG, tmp_path if given else None)
    assert str(caught.value).startswith(message)
    if after or at == 1:
        assert_identical(weights(model), after[0] if after else before)
    else:
        assert not torch.equal(weights(model)["heads.topic.1.weight"], before["heads.topic.1.weight"])
    assert all(tensor.isfinite().all() for tensor in weights(model).values())
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), RuntimeError("file write failed"), KeyboardInterrupt()], ids=repr
)
@pytest.mark.parametrize("call, good", [(1, "there is no checkpoint yet"), (4, "the checkpoint before is still good")])
def test_a_write_that_fails_is_one_error_and_costs_nothing_but_time(error, call, good, run, uninterrupted, tmp_path):
    original, calls = torch.save, itertools.count(1)

    def failing(state: dict, path: Path) -> None:
        original(state, path)
        if next(calls) == call:
            os.truncate(path, path.stat().st_size // 2)
            raise error

    with pytest.MonkeyPatch.context() as patch, pytest.raises((OSError, KeyboardInterrupt)) as caught:
        patch.setattr(torch, "save", failing)
        run(tmp_path)
    if not isinstance(error, KeyboardInterrupt):
        where = f"{tmp_path}: no checkpoint could be written at step {(3, 5, 6, 9)[call - 1]} ({error})"
        assert str(caught.value) == f"{where}; make room or give another directory; {good}"
    assert steps_in(tmp_path) == ([] if call == 1 else [5, 6])  # no half file is left behind
    assert run(tmp_path) == uninterrupted


def killed(fit_in_child: Callable, call: int, owner: object, name: str) -> int:
    """Exit status of a child process that ends by SIGKILL as it calls a function for the n-th time; a write is half."""
    if child := os.fork():
        return os.waitpid(child, 0)[1]
    original, calls = getattr(owner, name), itertools.count(1)

    def deadly(*args, **kwargs):
        if next(calls) == call:
            if name == "save":
                Path(args[1]).write_bytes(bytes(5000))
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **kwargs)

    setattr(owner, name, deadly)
    try:
        fit_in_child()
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork") or torch.accelerator.is_available(), reason="forks, which a GPU forbids")
def test_a_run_that_is_killed_again_and_again_ends_with_the_same_weights(run, uninterrupted, tmp_path):
    config, steps = replace(CONFIG, checkpoint_every=2), []
    for death in ((4, training, "train_step"), (2, torch, "save"), (2, os, "replace"), (3, Path, "unlink")):
        assert killed(lambda: run(tmp_path, config), *death) == signal.SIGKILL
        steps.append(max(int(path.name[18:26]) for path in tmp_path.glob("*.pt")))
    assert steps == sorted(steps) and steps[0] == 2 and steps[-1] > 6
    assert run(tmp_path, config) == uninterrupted


def flip(path: Path) -> None:
    """Another bit in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1 << 5
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage", [lambda path: os.truncate(path, path.stat().st_size // 2), flip, lambda path: os.truncate(path, 0)]
)
def test_a_damaged_checkpoint_is_passed_over_unless_all_are(damage: Callable, run, uninterrupted, stopped):
    older, newest = sorted(stopped.iterdir())
    copy = shutil.copytree(stopped, stopped.with_name("all"))
    damage(newest)
    with pytest.warns(UserWarning, match=f"{newest.name}: truncated or damaged; going on from {older.name}") as caught:
        again = run(stopped)
    assert again == uninterrupted and again.steps == STEPS - 9
    assert [warning.filename for warning in caught] == [__file__]
    (stopped / f"{newest.name}.refused").unlink()
    assert steps_in(stopped) == [12, 15]
    for path in copy.iterdir():
        damage(path)
    files, names = contents(copy), rf"{newest.name}, {older.name}"
    with pytest.raises(
        ValueError, match=rf"the checkpoints are truncated or damaged \({names}\); delete them to start"
    ):
        run(copy)
    assert contents(copy) == files


def test_random_numbers_of_another_kind_of_device_are_not_needed(run, uninterrupted, stopped):
    path = max(stopped.iterdir())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["state"]["random"]["mps"] = [torch.zeros(44, dtype=torch.uint8)]
    torch.save(checkpoint, path)
    path.rename(path.with_name(f"{path.name[:-15]}{sha256_of(path)[:12]}.pt"))
    again = run(stopped)
    assert again == uninterrupted and again.steps == STEPS - 10


def config(**settings) -> Callable:
    return lambda run: setattr(run, "config", replace(run.config, **settings))


def cell(table: str, column: str, value: object) -> Callable:
    return lambda run: getattr(run, table).loc.__setitem__((1, column), value)


def model(**settings) -> Callable:
    return lambda run: setattr(run, "model", run.build(**settings))


def fewer_attention_heads(run: SimpleNamespace) -> None:
    for layer in run.model.encoder.backbone.encoder.layer:
        layer.attention.self.num_attention_heads, layer.attention.self.attention_head_size = 2, 16
    run.model.encoder.backbone.config.num_attention_heads = 2


def more_dropout(run: SimpleNamespace) -> None:
    run.model.encoder.backbone.encoder.layer[0].output.dropout.p = 0.4


def other_embeddings(run: SimpleNamespace) -> None:
    run.model.encoder.backbone.embeddings.word_embeddings.weight.data[7, 3] += 1e-3


TURNED = (Task("topic", TASKS[0].labels[::-1]), *TASKS[1:])
OTHER_RUNS = [
    (config(seed=1), r"seed was 0 and is 1"),
    (config(epochs=4, keep="last"), r"epochs was 3 and is 4; keep was best and is last"),
    (config(max_norm=math.inf), r"max_norm was 1.0 and is inf"),
    (config(task_weights={"topic": 2}), r"task_weights was {} and is {'topic': 2}; the factors of the losses changed"),
    (config(sampling=TaskSampling()), r"sampling was None and is {'alpha': 0.5, .*}"),
    (cell("train", "topic", "sports"), r"the training data changed"),
    (cell("train", "topic", None), r"the training data changed"),
    (cell("train", "text", "Hm."), r"the factors of the losses changed; the training data changed"),
    (lambda run: setattr(run, "train", run.train[::-1]), r"the training data changed"),
    (cell("validation", "sentiment", None), r"the validation data changed"),
    (model(tasks=TURNED), r"tasks was \[\['topic', .* and is \[\['topic', .*; the training data .*; the validation .*"),
    (model(tasks=TASKS[:3]), r"tasks was .*entities.* and is .*; what trains changed; .*; the first weights changed"),
    (lambda run: run.model.encoder.backbone.embeddings.requires_grad_(False), r"what trains changed"),
    (lambda run: freeze(run.model, "layerwise_decay"), r"what trains changed"),
    (lambda run: freeze(run.model, "gradual_unfreezing"), r"what trains changed"),
    (model(projection=32), r"the encoder changed; what trains changed; the first weights changed"),
    (more_dropout, r"the encoder changed"),
    (model(pooling="max"), r"the encoder changed"),
    (fewer_attention_heads, r"the encoder changed"),
    (model(dropout=0.5), r"the heads changed"),
    (model(seed=1), r"the first weights changed"),
    (other_embeddings, r"the first weights changed"),
]


@pytest.mark.parametrize(
    "change, difference", OTHER_RUNS, ids=[f"{i} {text}" for i, (_, text) in enumerate(OTHER_RUNS)]
)
def test_checkpoints_of_another_run_are_refused_in_words(change, difference, build, partly, validation, stopped):
    other = SimpleNamespace(
        train=partly.copy(), validation=validation.copy(), config=CONFIG, model=build(), build=build
    )
    change(other)
    before, files = weights(other.model), contents(stopped)
    with pytest.raises(ValueError) as caught:
        fit(other.model, other.train, other.validation, other.config, stopped)
    expected = rf"{stopped}: its checkpoints belong to another run: {difference}; delete them to start over, or give .*"
    assert re.fullmatch(expected, str(caught.value)), str(caught.value)
    assert contents(stopped) == files
    assert_identical(weights(other.model), before)


def test_an_empty_path_is_no_directory(build, partly, validation):
    with pytest.raises(ValueError, match="directory is an empty path"):
        fit(build(), partly, validation, CONFIG, "")


def test_what_makes_no_difference_makes_no_other_run(run, build, uninterrupted, stopped, tmp_path):
    model = build()
    for name in ("_name_or_path", "transformers_version"):
        setattr(model.encoder.backbone.config, name, "another")
    assert run(stopped, model=model).steps == STEPS - 10
    first = run(tmp_path / "a", replace(CONFIG, epochs=1, task_weights={"topic": 2.0, "entities": 0.5}, warmup=0.0))
    again = run(tmp_path / "a", replace(CONFIG, epochs=1, task_weights={"entities": 0.5, "topic": 2}, warmup=0))
    assert again == first and again.steps == 0


def test_a_model_that_goes_on_to_other_data_is_no_fresh_one(build, partly, validation, tmp_path):
    """Two stages, each with a directory; then the second alone, which must not be given the result of both."""
    model, config = build(), replace(CONFIG, epochs=1)
    fit(model, partly[:6], validation, config, tmp_path / "first")
    both = fit(model, partly, validation, config, tmp_path / "second")
    with pytest.raises(ValueError, match="another run: the first weights changed"):
        fit(build(), partly, validation, config, tmp_path / "second")
    assert asdict(fit(model, partly, validation, config, tmp_path / "second")) == asdict(both)


@pytest.mark.parametrize("seed", [0, 1], ids=["the same run", "another seed"])
def test_two_runs_at_once_in_one_directory_leave_each_other_alone(seed: int, run, uninterrupted, tmp_path, monkeypatch):
    original, calls, inner, other = training.train_step, itertools.count(1), [], replace(CONFIG, seed=seed)

    def step(*args):
        if next(calls) == 2:
            with torch.random.fork_rng():
                inner.append(run(tmp_path, other))
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training, "train_step", step)
        outer = run(tmp_path)
    assert_identical(outer.weights, uninterrupted.weights)
    assert_same_history(outer.history, uninterrupted.history)
    assert torch.equal(inner[0].weights["heads.topic.1.weight"], outer.weights["heads.topic.1.weight"]) == (seed == 0)
    assert steps_in(tmp_path) == ([15, 15] if seed == 0 else [12, 12, 15, 15])
    for config in (CONFIG, other):  # neither has to be run again
        assert run(tmp_path, config).steps == 0
