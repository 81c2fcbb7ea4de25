"""Do the tasks pull the encoder in the same direction? Cosines of their gradients, with a yardstick for the noise.

The gradient of 64 sentences is noisy, and noise makes every cosine smaller: one task's gradients on two batches do
not agree fully either. So gradients are always compared between different batches, for two tasks as for one, and the
agreement of a task with itself is the yardstick. Measured twice: with heads as they start, and after five epochs of
training the heads alone on the frozen encoder.
"""

from collections.abc import Mapping
from itertools import combinations_with_replacement, permutations, product

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder

from .layer_probes import corpus_splits, frozen_encoder
from .sweeps import Study

NAMES = [task.name for task in TASKS]
BATCHES, SIZE = 4, 64


def trained_heads(seed: int, epochs: int) -> dict[str, Tensor]:
    """Weights of heads after some epochs on the frozen encoder's last layer; 0 epochs: as they start."""
    torch.manual_seed(seed)
    model, train = MultiTaskModel(frozen_encoder()), corpus_splits(6)["train"]
    vectors = torch.stack([state.mean(0) for state in train.vectors])
    optimizer = torch.optim.AdamW(model.heads.parameters(), lr=3e-3, fused=True)
    for _ in range(epochs):
        for rows in torch.randperm(len(vectors)).split(64):
            inputs = {"sentence": vectors[rows], "token": torch.cat([train.vectors[i] for i in rows])}
            chosen = [train.examples[i]["labels"] for i in rows]
            labels = {name: torch.tensor([own[name] for own in chosen]) for name in NAMES[:3]}
            labels["entities"] = torch.tensor([code for own in chosen for code in own["entities"]])
            logits = {task.name: model.heads[task.name](inputs[task.level]) for task in TASKS}
            optimizer.zero_grad()
            sum(model.loss(logits, labels).values()).backward()
            optimizer.step()
    return model.heads.state_dict()


def task_gradients(model: MultiTaskModel, batch: dict, task: str) -> dict[str, Tensor]:
    """Gradient of one task's loss for the encoder: {block: one long vector}, embeddings and layer 1 to 6."""
    model.zero_grad()
    model.loss(model(batch), batch["labels"])[task].backward()
    blocks: dict[str, list[Tensor]] = {}
    for name, parameter in model.encoder.backbone.named_parameters():
        if parameter.grad is not None:
            block = f"layer {int(name.split('.')[2]) + 1}" if name.startswith("encoder.") else "embeddings"
            blocks.setdefault(block, []).append(parameter.grad.flatten())
    return {block: torch.cat(pieces) for block, pieces in blocks.items()}


def agreement(gradients: Mapping[tuple[int, str], dict[str, Tensor]], block: str, a: str, b: str) -> float:
    """Mean cosine of two tasks' gradients (or one task's), always on two different batches."""
    cosines = [
        F.cosine_similarity(gradients[i, a][block].double(), gradients[j, b][block].double(), dim=0).item()
        for i, j in permutations(range(BATCHES), 2)
    ]
    return float(np.mean(cosines))


def gradient_cosines(epochs: int, seed: int) -> list[dict]:
    """Every block of the encoder and every pair of tasks: a row each."""
    model = MultiTaskModel(SentenceEncoder.from_pretrained()).eval()
    model.heads.load_state_dict(trained_heads(seed, epochs))
    examples = corpus_splits(6)["train"].examples
    drawn = np.random.default_rng(seed).permutation(len(examples))[: BATCHES * SIZE].reshape(BATCHES, SIZE)
    batches = [model.batch([examples[i] for i in rows]) for rows in drawn]
    gradients = {(k, name): task_gradients(model, batch, name) for k, batch in enumerate(batches) for name in NAMES}
    rows = []
    for block, (a, b) in product(gradients[0, NAMES[0]], combinations_with_replacement(NAMES, 2)):
        norm = np.mean([gradients[k, a][block].norm().item() for k in range(BATCHES)])
        rows.append({"block": block, "a": a, "b": b, "cosine": agreement(gradients, block, a, b), "norm_a": norm})
    return rows


STUDY = Study(
    "gradient_cosines",
    "Do the tasks pull the encoder in the same direction?",
    [{"epochs": epochs} for epochs in (0, 5)],
    gradient_cosines,
    seeds=range(5),
    minutes=8,
)
