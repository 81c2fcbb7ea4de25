"""Checkpoints: a run in one file that is good or refused, so that a killed run can go on to the same result."""

import hashlib
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from . import distributed
from .balancing import LossBalance
from .folders import sha256_of
from .history import History
from .multitask import MultiTaskModel
from .settings import TrainingConfig
from .warn import warn_caller


@dataclass
class Run:
    """A run in progress; what `load` has put back goes on as if it had never stopped.

    Args:
        model, optimizer, balance: what changes with every step.
        history: what happened so far.
        kept: weights of the epoch that the model is to end with; None before the first epoch has ended.
        step: optimizer steps taken.
    """

    model: MultiTaskModel
    optimizer: torch.optim.Optimizer
    balance: LossBalance
    history: History = field(default_factory=History)
    kept: dict[str, Tensor] | None = None
    step: int = 0

    def state(self) -> dict:
        """Everything, in terms that a file can hold; with several processes, all of them must call it."""
        device, balance_optimizer = next(self.model.parameters()).device.type, self.balance.optimizer
        random = {"cpu": distributed.of_all(torch.get_rng_state())}
        if device != "cpu":
            random[device] = distributed.of_all(getattr(torch, device).get_rng_state())
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "balance": self.balance.state_dict(),
            "balance_optimizer": balance_optimizer.state_dict() if balance_optimizer else None,
            "history": asdict(self.history),
            "kept": self.kept,
            "step": self.step,
            "random": random,
        }

    def load(self, path: Path) -> None:
        """Put back what a file of `Checkpoints` holds, whatever kind of device it was written on."""
        state = torch.load(path, map_location="cpu", weights_only=True)["state"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.balance.load_state_dict(state["balance"])
        if self.balance.optimizer:
            self.balance.optimizer.load_state_dict(state["balance_optimizer"])
        self.history, self.kept, self.step = History(**state["history"]), state["kept"], state["step"]
        for device, numbers in state["random"].items():
            own = numbers[distributed.rank() % len(numbers)].clone()
            if device == "cpu":
                torch.set_rng_state(own)
            elif device == next(self.model.parameters()).device.type:  # another kind of device has no use for it
                getattr(torch, device).set_rng_state(own)


class Checkpoints:
    """The last two states of a run in a directory, each a file that is whole or refused.

    A file is written under another name and then moved, so that a kill at any moment leaves whole files only. Its
    name holds a digest of the run's identity, so that runs never touch each other's files, the step, and a digest of
    the file itself, which tells a damaged one.

    Args:
        directory: made if it isn't there; None: nothing is ever written or read.
        identity: {what: value} of whatever determines the run: settings, data, tasks, first weights.
    """

    def __init__(self, directory: str | Path | None, identity: dict) -> None:
        self.directory = None if directory is None else Path(directory).expanduser()
        self.identity = json.loads(json.dumps(identity))
        self.name = run_name(self.identity)
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)  # what can't be written is noticed before training

    def paths(self) -> list[Path]:
        """Checkpoints of this run, newest first."""
        return [] if self.directory is None else sorted(self.directory.glob(f"{self.name}-step-*.pt"), reverse=True)

    def save(self, run: Run) -> None:
        """Write the state of a run and delete its last but two.

        Raises:
            OSError: it can't be written (a full disk); the checkpoints before are still good.
        """
        if self.directory is None:
            return
        state = run.state()
        if distributed.rank():  # the first process writes for all
            return
        partial = self.directory / f"{self.name}-{os.getpid()}.partial"
        try:
            torch.save({"identity": self.identity, "state": state}, partial)
            with open(partial, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(partial, self.directory / f"{self.name}-step-{run.step:08d}-{sha256_of(partial)[:12]}.pt")
        except (OSError, RuntimeError) as error:  # RuntimeError is what PyTorch makes of a full disk
            good = "the checkpoint before is still good" if self.paths() else "there is no checkpoint yet"
            what = f"no checkpoint could be written at step {run.step} ({error})"
            raise OSError(f"{self.directory}: {what}; make room or give another directory; {good}") from error
        finally:
            partial.unlink(missing_ok=True)
        for old in self.paths()[2:]:
            old.unlink(missing_ok=True)

    def resume(self, run: Run) -> None:
        """Bring a run to its newest state that is whole; leave it as it is if there are no checkpoints.

        Warns of each newer one that had to be refused, and sets it aside under the name NAME.refused.

        Raises:
            ValueError: only checkpoints of another run, saying what differs, or none that is whole.
        """
        paths, refused = self.paths(), []
        for path in paths:
            if not path.stem.endswith(sha256_of(path)[:12]):
                refused.append(path)
                continue
            for bad in refused:
                warn_caller(f"{bad}: truncated or damaged; going on from {path.name}")
                bad.rename(f"{bad}.refused")
            return run.load(path)
        remedy = "delete them to start over, or give another directory"
        if refused:
            names = ", ".join(path.name for path in refused)
            raise ValueError(f"{self.directory}: the checkpoints are truncated or damaged ({names}); {remedy}")
        others = [] if self.directory is None else sorted(self.directory.glob("run-*-step-*.pt"))
        if others:
            raise ValueError(
                f"{self.directory}: its checkpoints belong to another run: {self._differ(others[-1])}; {remedy}"
            )

    def _differ(self, path: Path) -> str:
        """In words, what is not the same in a checkpoint of another run."""
        try:
            theirs = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["identity"]
        except Exception as error:
            return f"{path.name} can't be read ({type(error).__name__})"
        names = [name for name in {**theirs, **self.identity} if theirs.get(name) != self.identity.get(name)]
        return "; ".join(
            f"{name} changed" if " " in name else f"{name} was {theirs.get(name)} and is {self.identity.get(name)}"
            for name in names
        )


def identity(
    model: MultiTaskModel, config: TrainingConfig, factors: dict[str, float], first_weights: str, *tables: list[dict]
) -> dict:
    """{what: value} of everything that determines a run's result; names of several words stand for fingerprints."""
    keys = "input_ids", "labels", "gold"  # gold: spans that tokens can't express count when an epoch is scored
    rows = [[[example[key] for key in keys] for example in examples] for examples in tables]
    backbone = model.encoder.backbone.config.to_dict()
    for name in ("_name_or_path", "transformers_version", "dtype"):  # what loading elsewhere or elsewhen would change
        backbone.pop(name, None)
    modules = [repr(model.encoder.projection), *(m.p for m in model.encoder.modules() if isinstance(m, nn.Dropout))]
    trains = [[n, list(p.shape), p.requires_grad] for n, p in model.named_parameters()]
    return {
        **{name: value for name, value in asdict(config).items() if name != "checkpoint_every"},
        "tasks": [[task.name, task.level, *task.labels] for task in model.tasks],
        "the factors of the losses": factors,
        "the encoder": [model.encoder.pooling, model.encoder.layers, _fingerprint(backbone), _fingerprint(modules)],
        "the heads": [model.head, model.dropout],
        "what trains": [_fingerprint(trains), dict(model.thaws), dict(model.rates)],
        "the training data": _fingerprint(rows[0]),
        "the validation data": _fingerprint(rows[1]),
        "the first weights": first_weights,
    }


def same_run(model: MultiTaskModel, identity: dict) -> dict:
    """The identity of a run; for a model that `fit` has left in the middle of this very run, with its weights then."""
    left, run, first_weights = getattr(model, "left_by_fit", (None, None, None))
    before = identity | {"the first weights": first_weights}
    return before if left == identity["the first weights"] and run_name(before) == run else identity


def run_name(identity: dict) -> str:
    """What the names of a run's files begin with."""
    same = json.loads(json.dumps(identity), parse_int=float)  # 1 and 1.0 are one setting, whatever the order
    return f"run-{hashlib.sha256(json.dumps(same, sort_keys=True).encode()).hexdigest()[:8]}"


def fingerprint_of(model: nn.Module) -> str:
    """Sixteen digits that change with any bit of the weights."""
    total = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return total.hexdigest()[:16]


def _fingerprint(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
