"""How long is each task's gradient in the encoder, and which angles are there, along a run with the plain sum?

Gradients of single batches are mostly noise, which pulls every cosine towards zero. So the cosine of entities with
the other tasks has a yardstick: the cosine of entities in one batch with entities in another.
"""

import torch
from torch import Tensor

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, TrainingConfig, load_corpus
from mtl_helpers.optimization import learning_rate_factor, make_optimizer, train_step
from mtl_helpers.tasks import IGNORE
from mtl_helpers.training import epoch_batches

from .sweeps import Study


def backbone_gradients(model: MultiTaskModel, batch: dict) -> dict[str, Tensor]:
    """{task: gradient of its loss with respect to the encoder, as one vector}."""
    losses, gradients = model.loss(model(batch), batch["labels"]), {}
    weights = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    for name, loss in losses.items():
        pieces = torch.autograd.grad(loss, weights, retain_graph=True)
        gradients[name] = torch.cat([piece.flatten() for piece in pieces])
    return gradients


def angles(first: dict[str, Tensor], second: dict[str, Tensor]) -> dict[str, float]:
    """Cosines of gradients from two batches: entities, the sum of the other tasks, one with the other."""
    entities = [gradients["entities"] for gradients in (first, second)]
    others = [sum(g for name, g in gradients.items() if name != "entities") for gradients in (first, second)]
    across = [torch.cosine_similarity(entities[i], others[1 - i], dim=0) for i in (0, 1)]
    return {
        "entities_twice": torch.cosine_similarity(*entities, dim=0).item(),
        "others_twice": torch.cosine_similarity(*others, dim=0).item(),
        "entities_others": sum(across).item() / 2,
    }


def share_in_spans(model: MultiTaskModel, batch: dict) -> float:
    """How much of the entity loss lies on tokens in spans."""
    with torch.no_grad():
        logits = model(batch)["entities"].flatten(0, 1)
    codes = batch["labels"]["entities"].flatten()
    each = torch.nn.functional.cross_entropy(logits, codes, reduction="none", ignore_index=IGNORE)
    return (each[codes > 0].sum() / each.sum()).item()


def gradient_lengths(seed: int) -> list[dict]:
    """Every 15 steps of three epochs: a row a task."""
    corpus = load_corpus()
    model = MultiTaskModel(SentenceEncoder.from_pretrained(), TASKS)
    examples = model.examples(corpus[corpus["split"] == "train"])
    config = TrainingConfig(epochs=3, learning_rate=2e-4, task_weights={"entities": 1.0}, seed=seed)
    optimizer, rows = make_optimizer(model, config), []
    plan = [batch for epoch in (1, 2, 3) for batch in epoch_batches(examples, config, epoch)]
    for step, chosen in enumerate(plan):
        batch = model.batch([examples[i] for i in chosen])
        model.train()
        if step % 15 == 0:
            other = model.batch([examples[i] for i in plan[step - 1]])
            gradients = backbone_gradients(model, batch)
            about = angles(gradients, backbone_gradients(model, other))
            about["share_of_names"] = share_in_spans(model, batch)
            rows += [{"step": step, "task": t, "length": g.norm().item(), **about} for t, g in gradients.items()]
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * learning_rate_factor(step, len(plan), config)
        train_step(model, optimizer, batch, config)
    return rows


STUDY = Study(
    "gradient_lengths",
    "How long are the tasks' gradients along a run with the plain sum, and which angles are there?",
    [{}],
    gradient_lengths,
    seeds=range(5),
    minutes=9,
    tolerance=30,
)
