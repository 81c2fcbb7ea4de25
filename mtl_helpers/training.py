"""The training loop: batches, optimizer, schedule, validation, checkpoints.

One optimizer step takes one batch through the encoder once, for all tasks together. Order, schedule and batches are
functions of the seed and the step, so that a run that was killed goes on from its last checkpoint and ends with the
same weights to the bit (on the same machine, with the same number of threads).
"""

import time
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path

import pandas as pd
import torch

from . import distributed
from .balancing import BALANCING
from .batches import length_batches
from .checkpoints import Checkpoints, Run, fingerprint_of, identity, same_run
from .evaluation import validate
from .features import hidden_source
from .freezing import thaw, unwrapped
from .history import History
from .multitask import MultiTaskModel
from .optimization import learning_rate_factor, make_balance, make_optimizer, precision_of, train_step
from .progress import progress
from .settings import TrainingConfig
from .tasks import IGNORE
from .warn import warn_caller


def fit(
    model: MultiTaskModel,
    train: pd.DataFrame,
    validation: pd.DataFrame,
    config: TrainingConfig | None = None,
    directory: str | Path | None = None,
    cache: bool = True,
) -> History:
    """Train in place, on the model's device; the model ends in eval mode with the weights of the epoch to keep.

    Args:
        model: its parameters with requires_grad train, or what `freeze` has chosen.
        train, validation: tables as `load_corpus` gives them; an empty cell is a label that is missing.
        config: see TrainingConfig.
        directory: for checkpoints. If it holds one of the same run (settings, data, tasks, first weights), training
            goes on from there and ends as it would have done without the interruption.
        cache: compute once, and keep in memory, what the layers give that stay frozen all the time.

    Returns:
        The history. Epochs are compared by the mean over tasks of macro-F1 and span F1 on `validation`.

    Raises:
        CorpusError: labels that can't be what they should be; names table, row and column.
        ValueError: no label of the model's tasks, nothing to train, checkpoints of another run (says what differs).
        FloatingPointError: a loss or gradient is not finite. Names task and step.
        OSError: a checkpoint can't be written.
        KeyboardInterrupt: with word of what the model holds and how to go on.
    """
    if directory is not None and not str(directory):
        raise ValueError("directory is an empty path, expected a folder for checkpoints, or None for none")
    distributed.start()
    config, model = config or TrainingConfig(), unwrapped(model)
    examples, held_out = read_labels(model, train, "train"), read_labels(model, validation, "validation")
    check_run(model, config)
    distributed.same_start(model, config.seed)
    plan = [epoch_batches(examples, config, epoch) for epoch in range(1, config.epochs + 1)]
    thaw(model, epoch=1)
    run = Run(model, make_optimizer(model, config), make_balance(model, config, examples))
    factors, first_weights = run.balance.factors, fingerprint_of(model) if directory is not None else ""
    whose = identity(model, config, factors, first_weights, examples, held_out)
    checkpoints = Checkpoints(directory, same_run(model, whose))
    checkpoints.resume(run)
    try:
        train_epochs(run, plan, examples, held_out, config, checkpoints, cache)
    except (KeyboardInterrupt, FloatingPointError) as error:
        raise type(error)(farewell(error, run, plan, checkpoints, config)) from error
    finally:
        if run.kept is not None:
            model.load_state_dict(run.kept)
        model.eval()
        if directory is not None:
            first_weights = checkpoints.identity["the first weights"]
            model.left_by_fit = fingerprint_of(model), checkpoints.name, first_weights
    return run.history


def train_epochs(
    run: Run,
    plan: Sequence[Sequence[list[int]]],
    examples: Sequence[dict],
    held_out: Sequence[dict],
    config: TrainingConfig,
    checkpoints: Checkpoints,
    cache: bool = True,
) -> None:
    """The loop: epochs of `plan`, in each its batches (positions in `examples`), then validation on `held_out`."""
    model, precision, total, planned = run.model, precision_of(run.model, config), sum(map(len, plan)), 0
    hidden = hidden_source(model, examples, precision, cache)
    hidden_held_out = hidden_source(model, held_out, cache=cache)  # judged in float32, as `evaluate` judges
    start = time.perf_counter() - (run.history.steps[-1]["seconds"] if run.history.steps else 0.0)
    with progress(None, "train", total - run.step) as bar:
        for epoch, batches in enumerate(plan, start=1):
            done = max(0, run.step - planned)  # steps of this epoch that were taken before an interruption
            planned += len(batches)
            if done >= len(batches):
                continue
            if patience_is_over(run.history, config):
                break
            thaw(model, epoch)  # a strategy may let a part train from now on
            model.train()  # dropout, but not in what is frozen
            for rows in batches[done:]:
                # The rates are a function of the step alone: nothing to store that a resumed run could lose.
                factor = learning_rate_factor(run.step, total, config)
                for group in run.optimizer.param_groups:
                    group["lr"] = group["peak"] * factor
                own, weights = distributed.own_rows(rows), run.balance.current()  # all rows, with a single process
                batch = model.batch([examples[i] for i in own])
                batch["labels"] = distributed.without_labels(batch["labels"], rows)
                losses, norm = train_step(model, run.optimizer, batch, config, run.balance, partial(hidden, own))
                run.step += 1
                about = {"step": run.step, "epoch": epoch, "seconds": round(time.perf_counter() - start, 3)}
                about |= {"learning_rate": config.learning_rate * factor, "gradient_norm": norm}
                run.history.add_step(
                    about | run.balance.noted, losses, weights, count_labels([examples[i] for i in rows])
                )
                bar.set_postfix_str(" ".join(f"{name} {loss:.2f}" for name, loss in losses.items()), refresh=False)
                bar.update()
                if run.step % config.checkpoint_every == 0 and run.step < planned:
                    checkpoints.save(run)
            # An epoch is judged without dropout, and its weights are set aside if they are the ones to keep.
            validated = validate(model, held_out, "float32", hidden_held_out)
            run.history.close_epoch(epoch, count_labels(examples), validated)
            run.balance.end_epoch(run.history.train_losses(epoch))
            if kept_epoch(run.history, config) == epoch:
                run.kept = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            checkpoints.save(run)


# ------------------------------------------------------------------------------------- what the loop is made of


def epoch_batches(examples: Sequence[dict], config: TrainingConfig, epoch: int) -> list[list[int]]:
    """The batches of an epoch, as positions in `examples`: a function of seed and epoch alone."""
    generator, sampling = torch.Generator().manual_seed(config.seed * 100_003 + epoch), config.sampling
    lengths = [len(example["input_ids"]) for example in examples]
    if sampling is None:
        return length_batches(lengths, config.max_tokens, generator)
    names = examples[0]["labels"]
    decks = {name: [i for i, e in enumerate(examples) if is_labelled(e["labels"][name])] for name in names}
    drawn = sampling.draw(decks, config.seed, epoch, config.epochs, len(lengths))
    return sampling.batches(drawn, lengths, config.max_tokens, generator)


def read_labels(model: MultiTaskModel, table: pd.DataFrame, which: str) -> list[dict]:
    """Examples of a table that has something to learn from; warns of a task that has not."""
    examples = model.examples(table, which)
    counts, names = count_labels(examples), [task.name for task in model.tasks]
    without = [name for name in names if not counts[f"{name}_labels"]]
    if len(without) == len(names):
        raise ValueError(
            f"{which}: found no label in {len(table)} rows, expected a column for one of {', '.join(names)}"
        )
    if without:
        warn_caller(f"{which} has no label for {', '.join(without)}")
    return examples


def check_run(model: MultiTaskModel, config: TrainingConfig) -> None:
    """Raise ValueError for settings that the model or the number of processes can't honour."""
    for setting in ("task_weights", "class_balance"):
        for name in getattr(config, setting):
            if name not in [task.name for task in model.tasks]:
                raise ValueError(f"{setting} names {name!r}, expected tasks of the model")
    coarse = {parameter.dtype for parameter in model.parameters()} & {torch.float16, torch.bfloat16}
    if coarse:
        remedy = "call model.float(); TrainingConfig(precision='bfloat16') is fast and keeps exact weights"
        raise ValueError(f"the weights are {coarse.pop()}, too coarse for the small steps of training; {remedy}")
    if distributed.world() > 1 and BALANCING[config.balancing].needs_gradients:
        what = "which compares gradients of whole batches, expected another with several processes"
        raise ValueError(f"balancing is {config.balancing!r}, {what}")


def count_labels(examples: Sequence[dict]) -> dict[str, int]:
    """{TASK_labels: texts that are labelled for it}."""
    names = examples[0]["labels"]
    return {f"{name}_labels": sum(is_labelled(example["labels"][name]) for example in examples) for name in names}


def is_labelled(codes: int | list[int]) -> bool:
    """Whether there is anything to learn from the class indices of a text."""
    return codes != IGNORE if isinstance(codes, int) else any(code != IGNORE for code in codes)


def kept_epoch(history: History, config: TrainingConfig) -> int:
    """The epoch whose weights the model would end with if training ended now."""
    return history.best_epoch if config.keep == "best" else history.epochs[-1]["epoch"]


def patience_is_over(history: History, config: TrainingConfig) -> bool:
    """Whether enough epochs have passed without a better one."""
    if not history.epochs or config.patience is None:
        return False
    return history.epochs[-1]["epoch"] - history.best_epoch >= config.patience


def farewell(error: BaseException, run: Run, plan: list, checkpoints: Checkpoints, config: TrainingConfig) -> str:
    """What a stopped run says: where it stopped, what the model holds, how to go on."""
    holds = "its last weights"
    if run.history.epochs:
        holds = f"the weights of epoch {kept_epoch(run.history, config)}, the {config.keep} so far"
    if isinstance(error, FloatingPointError):
        on = "try a lower learning rate or precision='float32', and look at the labels"
    elif checkpoints.paths():
        on = f"call fit again with the same arguments: checkpoints are in {checkpoints.directory}"
    else:
        on = "no checkpoint was written" + ("; give fit a directory" if checkpoints.directory is None else " yet")
    steps = list(accumulate(map(len, plan)))
    epoch = next((i for i, end in enumerate(steps, start=1) if run.step < end), len(plan))
    where = f"step {min(run.step + 1, steps[-1])} of {steps[-1]} (epoch {epoch})"
    return f"{str(error) or 'stopped'} in {where}; the model holds {holds}; {on}"
