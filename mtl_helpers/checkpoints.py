"""Checkpoints: the whole state of a run in one file that is good or refused, so that a killed run can go on."""

import hashlib
import json
import os
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import distributed


class Checkpoints:
    """The last two states of a run in a directory, each a single safetensors file that is whole or refused.

    A state is written under another name and then moved, so that a kill at any moment leaves whole files only; a
    SHA-256 over tensors and metadata tells a damaged file from a good one; `identity` tells whose run it belongs to.

    Args:
        directory: made if it isn't there; None: nothing is ever written or found.
        identity: {what: value} of whatever determines the run: settings, data, tasks, parameters.
    """

    def __init__(self, directory: str | Path | None, identity: dict) -> None:
        self.directory, self.identity = None if directory is None else Path(directory), identity
        if self.directory is not None:
            self.directory.mkdir(parents=True, exist_ok=True)  # what can't be written is noticed before training

    def save(self, step: int, tensors: dict[str, Tensor], state: dict) -> None:
        """Write the state before step number `step` and delete the last but two."""
        if self.directory is None or distributed.rank():
            return
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        text = json.dumps({"step": step, "identity": self.identity, **state})
        partial = self.directory / "partial"
        save_file(tensors, partial, {"state": text, "sha256": _digest(tensors, text)})
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, self.directory / f"step-{step:08d}.safetensors")
        for old in self.paths()[2:]:
            old.unlink()

    def load(self) -> tuple[dict[str, Tensor], dict] | None:
        """The newest state that is whole and belongs to this run; None if there are no checkpoints.

        Warns of each newer one that had to be refused, and sets it aside under the name NAME.refused.

        Raises:
            ValueError: there are checkpoints, but none can be used; names each and says why.
        """
        refused = []
        for path in self.paths():
            try:
                found = self._read(path)
            except ValueError as error:
                refused.append((path, f"{path}: {error}"))
                continue
            for bad, message in refused:
                warnings.warn(f"{message}; going on from {path.name}", stacklevel=3)
                bad.rename(f"{bad}.refused")
            return found
        if refused:
            remedy = "delete them to start over, or give another directory"
            raise ValueError("\n  ".join([f"no usable checkpoint, {remedy}:", *(text for _, text in refused)]))
        return None

    def paths(self) -> list[Path]:
        """Checkpoints, newest first."""
        return [] if self.directory is None else sorted(self.directory.glob("step-*.safetensors"), reverse=True)

    def _read(self, path: Path) -> tuple[dict[str, Tensor], dict]:
        try:
            with safe_open(path, "pt") as file:
                metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise ValueError(f"truncated or damaged ({error})") from error
        if metadata.get("sha256") != _digest(tensors, metadata.get("state", "")):
            raise ValueError("damaged or not a checkpoint (its SHA-256 doesn't fit)")
        state = json.loads(metadata["state"])
        theirs, ours = state["identity"], json.loads(json.dumps(self.identity))
        if theirs != ours:
            names = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
            differ = ", ".join(f"{name} is {theirs.get(name)} there and {ours.get(name)} here" for name in names)
            raise ValueError(f"belongs to another run ({differ})")
        return tensors, state


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
