"""Does a frozen head keep its task as it is while the others go on training?

All four tasks are trained; then, for each task in turn, its head is frozen and its labels are taken away, and the
other three train for one more epoch, once with the encoder moving and once with the encoder frozen as well.
"""

import warnings

from mtl_helpers import TASKS, MultiTaskModel, fit, freeze

from .freezing_strategies import f1, frozen_model, settings, splits
from .sweeps import Study

RATE = 3e-4  # the one that full training chose in freezing_strategies


def go_on(model: MultiTaskModel, task: str, moving: bool, seed: int, labels_stay: bool = False) -> None:
    """Train for an epoch with the head of `task` frozen, as a rule without its labels."""
    freeze(model, "one_head", task=task)
    model.encoder.backbone.requires_grad_(moving)
    tables = [splits()[split] for split in ("train", "validation")]
    if not labels_stay:
        tables = [table.assign(**{task: None}) for table in tables]
    with warnings.catch_warnings(action="ignore"):  # that one task has no labels is the point
        fit(model, *tables, settings(RATE, seed, epochs=1))


def frozen_head(seed: int) -> list[dict]:
    """One trained model, each of its tasks frozen in turn: a row for each task and encoder, moving or frozen."""
    model, test = frozen_model("full training"), splits()["test"]
    fit(model, splits()["train"], splits()["validation"], settings(RATE, seed))
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before, rows = f1(model, test), []
    for task in (task.name for task in TASKS):
        for moving in (True, False):
            model.load_state_dict(start)
            go_on(model, task, moving, seed)
            after = f1(model, test)
            row = {"task": task, "backbone": "moving" if moving else "frozen"}
            row |= {"before": before[task], "after": after[task]}
            row |= {"others_before": before.drop(task).mean(), "others_after": after.drop(task).mean()}
            rows.append(row)
    return rows


STUDY = Study(
    "frozen_head",
    "Does a frozen head keep its task as it is while the other tasks go on training?",
    [{}],
    frozen_head,
    range(5),
    minutes=24,
    tolerance=0.1,
)
