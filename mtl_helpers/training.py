"""The training loop: batches, optimizer, schedule, validation, checkpoints.

One optimizer step takes one batch (or several, accumulated) through the encoder once, for all tasks together.
Order, schedule and batches are functions of the seed and the step, so that a run that was killed goes on from its
last checkpoint and ends with the same weights to the bit (on the same machine, with the same number of threads).
"""

import hashlib
import json
import math
import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from torch import nn
from transformers import PreTrainedConfig

from . import distributed
from .balancing import BALANCING, CLASS_BALANCE, LossBalance, TaskSampling, class_criterion
from .checkpoints import Checkpoints
from .corpus import collate, length_batches, make_examples, progress
from .encoder import autocast, bfloat16_is_fast, inference
from .evaluation import macro_f1, span_counts, span_f1
from .figures import draw_history
from .freezing import cache_states, thaw, trained_parameters
from .multitask import MultiTaskModel
from .tasks import IGNORE

# Factor of the loss of a token task. Most tokens are O and soon easy, so the mean over all tokens is small and its
# gradient short. Compared on validation with 1 and 30: data/results/why_entities_suffer.csv, defined in notebook 04.
TOKEN_WEIGHT = 10.0


@dataclass(frozen=True)
class TrainingConfig:
    """How to train. The encoder's rate and TOKEN_WEIGHT were chosen on validation, the rest is common practice.

    Args:
        epochs: passes over the training data. The best of them is kept, so too many cost time rather than quality.
        learning_rate: of the encoder at its peak. The best of four for the four-task model on the validation data
            of the course (data/results/one_or_many.csv).
        head_learning_rate: of the heads at its peak: they start from random numbers and have further to go.
        optimizer: "adamw" (decoupled weight decay, Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101) or
            "adam" (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, the decay added to the gradient).
        weight_decay: of weight matrices; biases and layer norms are never decayed.
        schedule: of the learning rates behind the warm-up: "linear" or "cosine" to zero, "step" (a tenth for the last
            third of the steps) or "constant". Rates that end at zero let the last steps settle.
        warmup: share of all steps in which the rates rise from zero to their peaks; the first steps of Adam rest on
            few gradients and are the least reliable.
        max_norm: gradients (of all parameters together) longer than this are scaled down to it, so that a single odd
            batch can't do much; math.inf: never.
        max_tokens: budget of a batch in tokens, padding included; 512 are about 23 sentences of the corpus: more
            steps in an epoch than a larger budget gives, at little loss of speed.
        accumulation: batches per optimizer step, for steps larger than the memory allows; the gradient is that of
            one larger batch.
        task_weights: {task: factor of its loss}. Tasks not named: 1 for sentence tasks, TOKEN_WEIGHT for token tasks.
        sampling: how many rows of each task make an epoch, and in which batches; None: every row once. For tasks of
            very different size (notebook 5).
        balancing: what becomes of the factors of the losses: "fixed", "uncertainty", "dynamic_weight_average",
            "gradnorm" or "pcgrad" (notebook 5, module balancing).
        class_balance: {task: "inverse", "effective", "focal" or "logit_adjustment"}, for tasks whose classes are of
            very different size (notebook 5); tasks not named: plain cross-entropy.
        precision: of matrix products: "float32", "bfloat16", or "auto", bfloat16 where the device is fast at it.
        patience: training stops after so many epochs without a better score on validation; None: never.
        keep: the weights that the model ends with: of the "best" epoch on validation, or of the "last", where there
            are too few labels for validation to tell one from the other.
        checkpoint_every: optimizer steps between checkpoints, about a minute on two cores; there is one at the end of
            each epoch as well.
        seed: of the order of the batches and of dropout. The heads' first weights are drawn before, with the model.

    Raises:
        ValueError: an impossible value, by name.
    """

    epochs: int = 5
    learning_rate: float = 2e-4
    head_learning_rate: float = 1e-3
    optimizer: Literal["adamw", "adam"] = "adamw"
    weight_decay: float = 0.01
    schedule: Literal["linear", "cosine", "step", "constant"] = "linear"
    warmup: float = 0.1
    max_norm: float = 1.0
    max_tokens: int = 512
    accumulation: int = 1
    task_weights: dict[str, float] = field(default_factory=dict)
    sampling: TaskSampling | None = None
    balancing: Literal["fixed", "uncertainty", "dynamic_weight_average", "gradnorm", "pcgrad"] = "fixed"
    class_balance: dict[str, str] = field(default_factory=dict)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    patience: int | None = 3
    keep: Literal["best", "last"] = "best"
    checkpoint_every: int = 200
    seed: int = 0

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("epochs", "max_tokens", "accumulation", "checkpoint_every"), 1) | {"seed": 0}
        if self.patience is not None:
            whole["patience"] = 1
        for name, least in whole.items():
            if type(getattr(self, name)) is not int or not least <= getattr(self, name) < 2**31:
                self._refuse(name, f"a whole number of at least {least}")
        for name in ("learning_rate", "head_learning_rate", "weight_decay", "warmup", "max_norm"):
            if not _is_number(getattr(self, name)) and not (name == "max_norm" and self.max_norm == math.inf):
                self._refuse(name, "a finite number of at least 0")
        if self.max_norm == 0:
            self._refuse("max_norm", "a number above 0 (math.inf: no clipping)")
        if self.warmup >= 1:
            self._refuse("warmup", "a share of all steps, below 1")
        choices = {
            "optimizer": ("adamw", "adam"),
            "schedule": ("linear", "cosine", "step", "constant"),
            "precision": ("auto", "float32", "bfloat16"),
            "balancing": tuple(BALANCING),
            "keep": ("best", "last"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                self._refuse(name, f"one of {', '.join(known)}")

        weights = self.task_weights
        if not isinstance(weights, dict) or not all(_is_number(weight) for weight in weights.values()):
            self._refuse("task_weights", "{task: a finite number of at least 0}")
        if self.sampling is not None and not isinstance(self.sampling, TaskSampling):
            self._refuse("sampling", "a TaskSampling, or None")
        kinds = self.class_balance
        if not isinstance(kinds, dict) or not all(kind in CLASS_BALANCE for kind in kinds.values()):
            self._refuse("class_balance", f"{{task: one of {', '.join(CLASS_BALANCE)}}}")
        if BALANCING[self.balancing].needs_gradients and self.accumulation > 1:
            self._refuse("accumulation", f"1 with {self.balancing}, which compares the gradients of one batch")

    def _refuse(self, name: str, expected: str) -> None:
        raise ValueError(f"TrainingConfig: {name} is {getattr(self, name)!r}, expected {expected}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


@dataclass
class History:
    """What happened during training: `steps`, one dict per optimizer step, and `epochs`, one per epoch and task."""

    steps: list[dict] = field(default_factory=list)
    epochs: list[dict] = field(default_factory=list)

    def to_frame(self, which: Literal["epochs", "steps"] = "epochs") -> pd.DataFrame:
        """As a table.

        Returns:
            "epochs": one row per epoch and task: epoch, task, train_loss (mean over the epoch, with dropout),
            validation_loss (nats per label), accuracy (of labels or tokens), score (macro-F1, or F1 of spans),
            epochs_seen (labels trained on so far / labels there are). A task without validation labels has NaN.
            "steps": step, epoch, seconds (since the run started), learning_rate (of the encoder), gradient_norm
            (before clipping), and for each task TASK_loss, TASK_weight (what the loss was multiplied with) and
            TASK_labels (texts labelled for it in this step). With gradient surgery also conflicts, the share of
            ordered pairs of tasks whose gradients point against each other.
        """
        return pd.DataFrame(getattr(self, which))

    @property
    def scores(self) -> pd.Series:
        """Validation score of each epoch: mean over the tasks that have validation labels."""
        return self.to_frame().groupby("epoch")["score"].mean()

    @property
    def best_epoch(self) -> int:
        """The (first) epoch with the best mean score, whose weights `fit` leaves in the model (keep="best")."""
        return int(self.scores.idxmax())

    @property
    def best_epochs(self) -> dict[str, int]:
        """For each task the (first) epoch that was best for it: tasks peak at different times."""
        table = self.to_frame().dropna(subset="score").set_index("epoch")
        return {task: int(rows["score"].idxmax()) for task, rows in table.groupby("task", sort=False)}

    def plot(self) -> Figure:
        """Losses and validation scores by epoch, one colour per task, the best epoch marked."""
        return draw_history(self.to_frame(), self.best_epoch)


# ------------------------------------------------------------------------------------- parts of the loop


def learning_rate_factor(step: int, total: int, config: TrainingConfig) -> float:
    """Share of the peak learning rate that step number `step` (0 to total - 1) is taken with."""
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return 1 - done
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    return 0.1 if config.schedule == "step" and step >= 2 / 3 * total else 1.0


def make_optimizer(model: MultiTaskModel, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW or Adam over the parameters that train, in four groups (encoder and heads, decayed and not) or more.

    Groups have their own `peak` rate; `freeze` may have given the layers different shares of the encoder's.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter, share in trained_parameters(model):
        rate = config.head_learning_rate if name.startswith("heads.") else share * config.learning_rate
        decay = config.weight_decay if parameter.ndim > 1 else 0.0  # biases and layer norms are vectors
        groups.setdefault((rate, decay), []).append(parameter)
    if not groups:
        raise ValueError("every parameter is frozen (requires_grad is False), expected something to train")
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(
        [
            {"params": members, "lr": rate, "peak": rate, "weight_decay": decay}
            for (rate, decay), members in groups.items()
        ],
        fused=True,
    )


def make_balance(model: MultiTaskModel, config: TrainingConfig, examples: Sequence[dict] = ()) -> LossBalance:
    """The factors of the tasks' losses, and the losses themselves where classes of `examples` are to be balanced."""
    usual = {task.name: TOKEN_WEIGHT if task.level == "token" else 1.0 for task in model.tasks}
    criteria = {}
    for task in model.tasks:
        if kind := config.class_balance.get(task.name):
            codes = [code for example in examples for code in np.atleast_1d(example["labels"][task.name])]
            valid = torch.tensor([code for code in codes if code != IGNORE], dtype=torch.long)
            counts = torch.bincount(valid, minlength=len(task.classes))
            criteria[task.name] = class_criterion(kind, counts)
    return BALANCING[config.balancing](usual | config.task_weights, criteria)


def train_step(
    model: MultiTaskModel,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[dict],
    config: TrainingConfig,
    balance: LossBalance | None = None,
) -> tuple[dict[str, float], float]:
    """One optimizer step on one or more batches, as if they were one: each task's loss is the mean over all its labels.

    `balance` (default: the factors of `config`) says what each loss is multiplied with.

    Returns:
        {task: loss} (nats per label; tasks without a label are left out) and the norm of the gradient before clipping.

    Raises:
        FloatingPointError: a loss or a gradient that is not finite; nothing has been changed then.
    """
    counts = [{name: int((codes != IGNORE).sum()) for name, codes in batch["labels"].items()} for batch in batches]
    device = next(model.parameters()).device
    totals = distributed.summed({name: sum(count[name] for count in counts) for name in counts[0]}, device)
    balance = balance or make_balance(model, config)
    losses: Counter[str] = Counter(dict.fromkeys(totals, 0.0))
    for batch, count in zip(batches, counts, strict=True):
        with autocast(next(model.parameters()).device, _precision(model, config)):
            logits = model(balance.open(model, batch))
        parts = {}
        for name, loss in model.loss(logits, batch["labels"], balance.criteria).items():
            if count.get(name):
                parts[name] = loss * (count[name] / totals[name])
                losses[name] += parts[name].item()
        if parts:
            balance.backward(parts)
    losses = {name: loss for name, loss in distributed.summed(losses, device).items() if totals[name]}
    for name, loss in losses.items():
        if not math.isfinite(loss):
            optimizer.zero_grad()
            raise FloatingPointError(f"the loss of task {name!r} is {loss}")
    distributed.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
    norm = nn.utils.clip_grad_norm_([p for group in optimizer.param_groups for p in group["params"]], config.max_norm)
    if not torch.isfinite(norm):
        optimizer.zero_grad()
        raise FloatingPointError(f"the gradient of {' + '.join(losses)} has the length {norm.item()}")
    optimizer.step()
    optimizer.zero_grad()
    balance.end_step(losses)
    return dict(losses), norm.item()


def validate(model: MultiTaskModel, examples: Sequence[dict], precision: str = "float32") -> dict[str, dict]:
    """Loss, accuracy and score of each task on labelled examples (of `make_examples`), in eval mode.

    Returns:
        {task: {"validation_loss": nats per label, "accuracy": share of labels (token task: of tokens) that are
        right, "score": macro-F1 (token task: F1 of exact spans)}}; NaN for a task without labels.
    """
    pad_id, tasks = model.encoder.tokenizer.pad_token_id, model.tasks
    losses, labels, right = Counter(), Counter(), Counter()
    truth: dict[str, list] = {task.name: [] for task in tasks}
    found: dict[str, list] = {task.name: [] for task in tasks}
    with inference(model, precision):
        for rows in length_batches([len(example["input_ids"]) for example in examples], max_tokens=2048):
            batch = collate([examples[i] for i in rows], pad_id)
            logits = model(batch)
            means = model.loss(logits, batch["labels"])
            for task in tasks:
                codes, best = batch["labels"][task.name], logits[task.name].argmax(-1).cpu()
                valid = codes != IGNORE
                losses[task.name] += means[task.name].item() * int(valid.sum())
                labels[task.name] += int(valid.sum())
                right[task.name] += int((codes == best)[valid].sum())
                if task.level == "sentence":
                    truth[task.name] += codes[valid].tolist()
                    found[task.name] += best[valid].tolist()
                    continue
                for i, line, guess in zip(rows, codes.tolist(), best.tolist(), strict=True):
                    offsets = examples[i]["offsets"]
                    if any(code != IGNORE for code in line):
                        truth[task.name].append(task.decode(line[: len(offsets)], offsets))
                        found[task.name].append(task.decode(guess[: len(offsets)], offsets))
    result = {}
    for task in tasks:
        name, n = task.name, labels[task.name]
        score = macro_f1 if task.level == "sentence" else lambda a, b: span_f1(span_counts(a, b))
        result[name] = {
            "validation_loss": losses[name] / n if n else math.nan,
            "accuracy": right[name] / n if n else math.nan,
            "score": score(truth[name], found[name]) if n else math.nan,
        }
    return result


# ------------------------------------------------------------------------------------------------ helpers


def _fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def _precision(model: nn.Module, config: TrainingConfig) -> str:
    if config.precision != "auto":
        return config.precision
    return "bfloat16" if bfloat16_is_fast(next(model.parameters()).device) else "float32"


# -------------------------------------------------------------------------------------------------- fit


def fit(
    model: MultiTaskModel,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    config: TrainingConfig | None = None,
    directory: str | Path | None = None,
) -> History:
    """Train in place, on the model's device; the model ends in eval mode with the weights of the epoch to keep.

    Args:
        model: its parameters with requires_grad train, or what `freeze` has chosen. What the layers compute that
            stay frozen all the time is computed once and kept in memory (4 bytes a number, T x H numbers a text).
        train, validation: tables as `load_corpus` gives them; an empty cell is a label that is missing.
        config: see TrainingConfig.
        directory: for checkpoints. If it holds one of the same settings, data and tasks, training goes on from there,
            whatever weights the model comes with, and ends as it would have done without the interruption.

    Returns:
        The history. Epochs are compared by the mean over tasks of macro-F1 and span F1 on `validation`.

    Raises:
        ValueError: a table without text or without any label of the model's tasks, nothing to train, or
            a directory with checkpoints of which none is usable.
        FloatingPointError: a loss or gradient is not finite. Names task and step.
        KeyboardInterrupt: with word of what the model holds and how to go on.
    """
    config = config or TrainingConfig()
    distributed.start()
    if distributed.world() > 1 and BALANCING[config.balancing].needs_gradients:
        raise ValueError(
            f"balancing is {config.balancing!r}, which compares gradients of whole batches: one process only"
        )
    examples, held_out = _read_labels(model, train, "train"), _read_labels(model, validation, "validation")
    for field_name in ("task_weights", "class_balance"):
        for name in getattr(config, field_name):
            if name not in [task.name for task in model.tasks]:
                raise ValueError(f"{field_name} names {name!r}, expected tasks of the model")
    lengths, epochs = [len(example["input_ids"]) for example in examples], range(1, config.epochs + 1)
    labels = {task.name: [example["labels"][task.name] for example in examples] for task in model.tasks}
    decks = {name: [i for i, codes in enumerate(column) if _is_labelled(codes)] for name, column in labels.items()}
    plan = [(epoch, group) for epoch in epochs for group in epoch_batches(lengths, config, epoch, decks)]
    thaw(model, epoch=1)
    optimizer, balance = make_optimizer(model, config), make_balance(model, config, examples)
    checkpoints = Checkpoints(directory, _identity(model, config, examples, held_out))
    history, best, first = History(), None, 0
    distributed.same_start(model, config.seed)
    if found := checkpoints.load():
        history, best, first = _restore(model, optimizer, balance, *found)
    for part in (examples, held_out):
        cache_states(model, part, _precision(model, config))  # if lower layers stay frozen all the time
    start = time.perf_counter() - (history.steps[-1]["seconds"] if history.steps else 0.0)
    step, epoch = first, 0
    bar = progress(range(first, len(plan)), "train")
    try:
        for step in bar:
            new_epoch = epoch != plan[step][0]
            epoch, rows = plan[step]
            if new_epoch and _patience_is_over(history, config):
                break
            if new_epoch:
                thaw(model, epoch)
                model.train()
            factor = learning_rate_factor(step, len(plan), config)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            shares = [[examples[i] for i in distributed.own_rows(part)] for part in rows]
            batches = [collate(share, model.encoder.tokenizer.pad_token_id) for share in shares]
            for batch, part in zip(batches, rows, strict=True):
                batch["labels"] = distributed.without_labels(batch["labels"], part)
            weights = balance.current()
            losses, norm = train_step(model, optimizer, batches, config, balance)
            history.steps.append(
                {
                    "step": step + 1,
                    "epoch": epoch,
                    "seconds": round(time.perf_counter() - start, 3),
                    "learning_rate": config.learning_rate * factor,
                    "gradient_norm": norm,
                    **{f"{name}_loss": loss for name, loss in losses.items()},
                    **{f"{name}_weight": weight for name, weight in weights.items()},
                    **_count_labels([examples[i] for part in rows for i in part]),
                    **balance.noted,
                }
            )
            shown = " ".join(f"{name} {loss:.2f}" for name, loss in losses.items())
            bar.set_postfix_str(shown, refresh=False)  # which would ignore the bar's delay
            epoch_ends = step + 1 == len(plan) or plan[step + 1][0] != epoch
            if epoch_ends:
                _close_epoch(
                    history, epoch, _count_labels(examples), validate(model, held_out, _precision(model, config))
                )
                losses = {row["task"]: row["train_loss"] for row in history.epochs if row["epoch"] == epoch}
                balance.end_epoch(losses)
                if _kept_epoch(history, config) == epoch:
                    best = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            if epoch_ends or (step + 1) % config.checkpoint_every == 0:
                checkpoints.save(step + 1, *_state(model, optimizer, balance, history, best))
    except (KeyboardInterrupt, FloatingPointError) as error:
        raise type(error)(_farewell(error, step, plan, history, checkpoints, config)) from error
    finally:
        bar.close()
        if best is not None:
            model.load_state_dict(best)
        model.eval()
    return history


def epoch_batches(
    lengths: Sequence[int], config: TrainingConfig, epoch: int, decks: dict[str, list[int]] | None = None
) -> list[list[list[int]]]:
    """The optimizer steps of an epoch: each a list of batches of positions. A function of seed and epoch alone.

    `decks`, the positions that are labelled for each task, are needed if `config` has a TaskSampling.
    """
    generator, sampling = torch.Generator().manual_seed(config.seed * 100_003 + epoch), config.sampling
    if sampling is None:
        batches = length_batches(lengths, config.max_tokens, generator)
    else:
        drawn = sampling.draw(decks, config.seed, epoch, config.epochs, len(lengths))
        batches = sampling.batches(drawn, lengths, config.max_tokens, generator)
    return [batches[i : i + config.accumulation] for i in range(0, len(batches), config.accumulation)]


def _read_labels(model: MultiTaskModel, frame: pd.DataFrame, which: str) -> list[dict]:
    """Examples of a table that has something to learn from; warns of a task that has not."""
    if "text" not in frame or not len(frame):
        raise ValueError(
            f"{which}: found {len(frame)} rows with the columns {', '.join(frame)}, expected some with text"
        )
    examples = make_examples(frame, model.encoder.tokenizer, model.tasks, model.encoder.max_length)
    counts, names = _count_labels(examples), [task.name for task in model.tasks]
    without = [name for name in names if not counts[f"{name}_labels"]]
    if len(without) == len(names):
        raise ValueError(
            f"{which}: found no label in {len(frame)} rows, expected a column for one of {', '.join(names)}"
        )
    if without:
        warnings.warn(f"{which} has no label for {', '.join(without)}", stacklevel=3)
    return examples


def _count_labels(examples: Sequence[dict]) -> dict[str, int]:
    """Texts that are labelled for each task."""

    names = examples[0]["labels"]
    return {f"{name}_labels": sum(_is_labelled(example["labels"][name]) for example in examples) for name in names}


def _is_labelled(codes: int | list[int]) -> bool:
    return codes != IGNORE if isinstance(codes, int) else any(code != IGNORE for code in codes)


def _close_epoch(history: History, epoch: int, there: dict[str, int], found: dict[str, dict]) -> None:
    """Add an epoch's rows, one per task, to the history."""
    for name, scores in found.items():
        seen = [(row["epoch"], row[f"{name}_labels"], row.get(f"{name}_loss", 0.0)) for row in history.steps]
        now = [(labels, loss) for number, labels, loss in seen if number == epoch]
        labels = sum(labels for labels, _ in now)
        history.epochs.append(
            {
                "epoch": epoch,
                "task": name,
                "train_loss": sum(labels * loss for labels, loss in now) / labels if labels else math.nan,
                **scores,
                "epochs_seen": sum(labels for _, labels, _ in seen) / max(1, there[f"{name}_labels"]),
            }
        )


def _kept_epoch(history: History, config: TrainingConfig) -> int:
    return history.best_epoch if config.keep == "best" else history.epochs[-1]["epoch"]


def _patience_is_over(history: History, config: TrainingConfig) -> bool:
    if not history.epochs or config.patience is None:
        return False
    return history.epochs[-1]["epoch"] - history.best_epoch >= config.patience


def _identity(model: MultiTaskModel, config: TrainingConfig, *data: list[dict]) -> dict:
    """What a checkpoint must agree with: everything that determines the result."""
    parts = [[[e["input_ids"], e["labels"]] for e in examples] for examples in data]
    return {
        **{name: value for name, value in asdict(config).items() if name != "checkpoint_every"},
        "tasks": [[task.name, task.level, *task.labels] for task in model.tasks],
        "encoder": [model.encoder.pooling, model.encoder.layers, _fingerprint(_shape(model.encoder.backbone.config))],
        "head": [model.head, model.dropout],
        "parameters": _fingerprint([[n, list(p.shape), p.requires_grad] for n, p in model.named_parameters()]),
        "freezing": [dict(model.thaws), dict(model.rates)],
        "train": _fingerprint(parts[0]),
        "validation": _fingerprint(parts[1]),
    }


def _shape(config: PreTrainedConfig) -> dict:
    """A backbone's configuration without what loading it elsewhere or elsewhen would change."""
    names = ("_name_or_path", "transformers_version", "dtype")
    return {name: value for name, value in config.to_dict().items() if name not in names}


def _state(
    model: MultiTaskModel, optimizer: torch.optim.Optimizer, balance: LossBalance, history: History, best: dict | None
) -> tuple[dict, dict]:
    """All tensors of a run, and the rest as JSON."""
    parts = {"model": model.state_dict(), "best": best or {}, "balance": balance.state_dict()}
    for part, owner in (("optimizer", optimizer), ("balance_optimizer", balance.optimizer)):
        moments = owner.state_dict()["state"] if owner else {}
        parts[part] = {f"{i}.{name}": tensor for i, values in moments.items() for name, tensor in values.items()}
    tensors = {f"{part}.{name}": tensor for part, members in parts.items() for name, tensor in members.items()}
    tensors["random.cpu"] = distributed.of_all(torch.get_rng_state())
    device = next(model.parameters()).device.type
    if device != "cpu":
        tensors[f"random.{device}"] = distributed.of_all(getattr(torch, device).get_rng_state())
    return tensors, {"history": asdict(history)}


def _restore(
    model: MultiTaskModel, optimizer: torch.optim.Optimizer, balance: LossBalance, tensors: dict, state: dict
) -> tuple[History, dict | None, int]:
    """Put a state back: history, weights of the epoch to keep, number of the next step."""
    parts: dict[str, dict] = defaultdict(dict)
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        parts[part][rest] = tensor
    model.load_state_dict(parts["model"])
    balance.load_state_dict(parts["balance"])
    for part, owner in (("optimizer", optimizer), ("balance_optimizer", balance.optimizer)):
        moments: dict[int, dict] = defaultdict(dict)
        for name, tensor in parts[part].items():
            i, _, key = name.partition(".")
            moments[int(i)][key] = tensor
        if owner:
            owner.load_state_dict({**owner.state_dict(), "state": dict(moments)})
    for device, numbers in parts["random"].items():
        own = numbers[distributed.rank() % len(numbers)].clone()  # PyTorch would read the whole storage from its start
        (torch if device == "cpu" else getattr(torch, device)).set_rng_state(own)
    return History(**state["history"]), parts["best"] or None, state["step"]


def _farewell(
    error: BaseException, step: int, plan: list, history: History, checkpoints: Checkpoints, config: TrainingConfig
) -> str:
    """What a stopped run says: where it stopped, what the model holds, how to go on."""
    holds = "its last weights"
    if history.epochs:
        holds = f"the weights of epoch {_kept_epoch(history, config)}, the {config.keep} so far"
    if isinstance(error, FloatingPointError):
        on = "try a lower learning rate or precision='float32', and look at the labels"
    elif checkpoints.paths():
        on = f"call fit again with the same arguments: checkpoints are in {checkpoints.directory}"
    else:
        on = "no checkpoint was written" + ("; give fit a directory" if checkpoints.directory is None else " yet")
    where = f"step {step + 1} of {len(plan)} (epoch {plan[step][0]})"
    return f"{str(error) or 'stopped'} in {where}; the model holds {holds}; {on}"
