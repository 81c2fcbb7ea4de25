"""One encoder, several heads: a single pass through the backbone answers every task.

Hard parameter sharing after Caruana 1997, "Multitask learning" (https://doi.org/10.1023/A:1007379606734).
Shapes: B texts, T tokens, H width of the backbone, D width of a sentence vector, C classes of a task.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import pandas as pd
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from .batches import collate, length_batches, make_examples, tokenize
from .encoder import SentenceEncoder
from .folders import SETTINGS, check_sha256, hashes, read_json, replacing, write_json
from .progress import progress
from .runtime import inference
from .tables import check_table
from .tasks import IGNORE, TASKS, Task
from .warn import warn_caller


def make_head(width: int, classes: int, kind: str = "linear", dropout: float = 0.1) -> nn.Sequential:
    """Scores for the classes from vectors of `width`: linear, or an MLP with one hidden layer of the same width.

    The same head serves sentence vectors, (B, D) -> (B, C), and token vectors, (B, T, H) -> (B, T, C).
    """
    if kind not in ("linear", "mlp"):
        raise ValueError(f"head is {kind!r}, expected 'linear' or 'mlp'")
    hidden = [nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout)] if kind == "mlp" else []
    return nn.Sequential(nn.Dropout(dropout), *hidden, nn.Linear(width, classes))


def decode(task: Task, codes: Tensor, offsets: Sequence[list[tuple[int, int]]]) -> list:
    """Labels of a batch from class indices, (B,) or (B, T): strings, or for a token task lists of spans."""
    if task.level == "sentence":
        return [task.labels[code] for code in codes.tolist()]
    return [task.decode(row[: len(own)], own) for row, own in zip(codes.tolist(), offsets, strict=True)]


class MultiTaskModel(nn.Module):
    """A sentence encoder with one head per task.

    Sentence heads read the pooled vector, before it is scaled to length 1; token heads read the last hidden
    state of each token.

    Args:
        encoder: the shared part.
        tasks: any number of tasks with different names.
        head: "linear" or "mlp" (one hidden layer), for all tasks.
        dropout: probability, in front of each linear layer of the heads.
    """

    # What `freezing.freeze` sets: {part: first epoch in which it trains} and {part: share of the learning rate}.
    thaws: Mapping[str, int] = MappingProxyType({})
    rates: Mapping[str, float] = MappingProxyType({})

    def __init__(
        self,
        encoder: SentenceEncoder,
        tasks: Sequence[Task] = TASKS,
        head: Literal["linear", "mlp"] = "linear",
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        names = [task.name for task in tasks]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"found the tasks {names}, expected at least one and each name once")
        for name in names:
            if hasattr(nn.ModuleDict(), name):
                raise ValueError(f"task name {name!r} is also a method of PyTorch's ModuleDict; give the task another")
            if f"{name}_probability" in names:
                raise ValueError(f"tasks {name!r} and '{name}_probability' would share a column of predict; rename one")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout!r}, expected 0 or more and less than 1")
        self.encoder, self.tasks, self.head, self.dropout = encoder, tuple(tasks), head, dropout
        widths = {"sentence": encoder.dim, "token": encoder.backbone.config.hidden_size}
        self.heads = nn.ModuleDict(
            {task.name: make_head(widths[task.level], len(task.classes), head, dropout) for task in tasks}
        )

    def train(self, mode: bool = True) -> "MultiTaskModel":
        """As in PyTorch, but a module that is frozen (no parameter of it trains) stays in eval mode: no dropout."""
        super().train(mode)
        for module in self.modules() if mode else ():
            flags = [parameter.requires_grad for parameter in module.parameters()]
            if flags and not any(flags):
                module.eval()
        return self

    def forward(self, batch: dict) -> dict[str, Tensor]:
        """One pass through the backbone, then every head.

        Args:
            batch: from `batch`: `input_ids` and `attention_mask`, both (B, T).

        Returns:
            {task: logits}, (B, C) for a sentence task and (B, T, C) for a token task.
        """
        return self.answer(self.encoder.hidden(batch), batch)

    def answer(self, states: Sequence[Tensor], batch: dict) -> dict[str, Tensor]:
        """What the heads say to hidden states: the part of the forward pass that lies above the encoder.

        Args:
            states: hidden states, each (B, T, H), the last one of the last layer (see `SentenceEncoder.hidden`).
            batch: `attention_mask`, (B, T).
        """
        mask = batch["attention_mask"].to(states[-1].device)
        inputs = {"sentence": self.encoder.vectors(states, mask), "token": states[-1]}
        return {task.name: self._head(task.name, inputs[task.level]) for task in self.tasks}

    def _head(self, name: str, x: Tensor) -> Tensor:
        head = self.heads[name]
        return head(x if torch.is_autocast_enabled(x.device.type) else x.to(head[-1].weight.dtype))

    def examples(self, table: pd.DataFrame, name: str = "table") -> list[dict]:
        """The rows of a table, checked (`check_table`), tokenised, with labels as class indices (`make_examples`)."""
        table = check_table(table, self.tasks, name)
        return make_examples(table, self.encoder.tokenizer, self.tasks, self.encoder.max_length)

    def batch(self, examples: Sequence[dict]) -> dict:
        """Some of `examples`, padded to the longest: see `collate`."""
        return collate(examples, self.encoder.tokenizer.pad_token_id)

    def loss(
        self,
        logits: dict[str, Tensor],
        labels: dict[str, Tensor],
        criteria: Mapping[str, Callable] = MappingProxyType({}),
    ) -> dict[str, Tensor]:
        """Cross-entropy of each task, in nats, averaged over its valid labels in the batch.

        Averaging over the valid labels of the task alone keeps a task's weight independent of how many
        rows or tokens happen to carry it. A task with no valid label gives 0, with a gradient of 0.

        Args:
            logits: from `forward`.
            labels: {task: class indices}, (B,) or (B, T), IGNORE where there is nothing to learn; a task
                that is not in it counts as not labelled.
            criteria: {task: another loss than cross-entropy}: functions of scores (N, C) and class indices (N,)
                that give (N,) losses, 0 where the index is IGNORE.
        """
        losses = {}
        for name, scores in logits.items():
            target = (
                labels[name].to(scores.device)
                if name in labels
                else torch.full(scores.shape[:-1], IGNORE, device=scores.device)
            )
            pair = scores.flatten(0, -2).float(), target.flatten()
            if name in criteria:
                total = criteria[name](*pair).sum()
            else:
                total = F.cross_entropy(*pair, ignore_index=IGNORE, reduction="sum")
            losses[name] = total / (target != IGNORE).sum().clamp(min=1)
        return losses

    def predict(self, texts: Sequence[str], precision: str = "float32", max_tokens: int = 1024) -> pd.DataFrame:
        """Predict every task for every text; arguments as in `SentenceEncoder.encode`.

        Returns:
            One row per text, in order: `text`; for each sentence task the label and `TASK_probability`; for
            each token task a list of (start, end, label, surface) in characters of the text.
        """
        texts = texts if isinstance(texts, str | bytes | Mapping | pd.DataFrame) else list(texts)
        examples = tokenize(texts, self.encoder.tokenizer, self.encoder.max_length)
        cut = sum(not example["complete"] for example in examples)
        if cut:
            warn_caller(f"{cut} texts were cut after {self.encoder.max_length} tokens; split long texts")
        rows: list[dict] = [{"text": text} for text in texts]
        with inference(self, precision):
            for indices in progress(length_batches([len(e["input_ids"]) for e in examples], max_tokens), "predict"):
                logits = self(self.batch([examples[i] for i in indices]))
                for task in self.tasks:
                    probabilities, codes = (t.cpu() for t in logits[task.name].float().softmax(-1).max(-1))
                    if not probabilities.isfinite().all():
                        what = "the weights are damaged, or too large for their precision"
                        raise FloatingPointError(f"scores of task {task.name} are not finite numbers: {what}")
                    labels = decode(task, codes, [examples[i]["offsets"] for i in indices])
                    for i, label, probability in zip(indices, labels, probabilities.tolist(), strict=True):
                        if task.level == "sentence":
                            rows[i] |= {task.name: label, f"{task.name}_probability": probability}
                        else:
                            rows[i][task.name] = [(a, b, kind, texts[i][a:b]) for a, b, kind in label]
        columns = ["text"] + [
            c for t in self.tasks for c in ([t.name, f"{t.name}_probability"] if t.level == "sentence" else [t.name])
        ]
        return pd.DataFrame(rows, columns=columns)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write encoder, tokenizer, heads and tasks into one directory, complete and loadable offline.

        Raises:
            ValueError: LoRA adapters that have not been merged; nothing is written.
            OSError: a directory that can't be written, a full disk; what stood there before is still whole.
        """
        if any(".lora_" in name for name, _ in self.named_parameters()):
            raise ValueError("the model has LoRA adapters, expected none; call freezing.merge_lora(model) first")
        tasks = [{"name": task.name, "labels": task.labels, "level": task.level} for task in self.tasks]
        settings = {"head": self.head, "dropout": self.dropout, "tasks": tasks}
        with replacing(directory) as folder:
            self.encoder.save_pretrained(folder)
            save_file(self.heads.state_dict(), folder / "heads.safetensors", {"tasks": json.dumps(tasks)})
            write_json(folder / "tasks.json", {**settings, "sha256": hashes(folder)})
        (Path(directory).expanduser() / "serving.json").unlink(missing_ok=True)  # describes an export of another save

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "MultiTaskModel":
        """Load what `save_pretrained` wrote, in eval mode.

        Raises:
            FileNotFoundError: not such a directory, or files missing from it.
            ValueError: files that are truncated, or of different saves (their SHA-256 doesn't fit).
        """
        directory = Path(directory).expanduser()
        if not (directory / "tasks.json").is_file():
            expected = "expected a folder written by MultiTaskModel.save_pretrained"
            raise FileNotFoundError(f"{directory}: holds no tasks.json, {expected}")
        settings = read_json(directory / "tasks.json")
        read_json(directory / SETTINGS)
        try:
            expected, tasks = settings["sha256"], [Task(**task) for task in settings["tasks"]]
            options = settings["head"], settings["dropout"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{directory / 'tasks.json'}: not as save_pretrained writes it ({error!r})") from error
        for name, value in expected.items():
            check_sha256(directory / name, value)
        with safe_open(directory / "heads.safetensors", "pt") as file:
            trained = (file.metadata() or {}).get("tasks")
        if (
            trained is not None and json.loads(trained) != settings["tasks"]
        ):  # the heads know what they were trained for
            what = "its tasks or labels are not those that the heads were trained with"
            raise ValueError(f"{directory / 'tasks.json'}: {what}, {trained}; put them back, or save the model again")
        model = cls(SentenceEncoder.from_pretrained(directory), tasks, *options)
        try:
            model.heads.load_state_dict(load_file(directory / "heads.safetensors"))
        except RuntimeError as error:
            what = "describes other heads than those in heads.safetensors; put it back, or save the model again"
            raise ValueError(f"{directory / 'tasks.json'}: {what}") from error
        return model.eval()
