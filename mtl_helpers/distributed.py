"""Training on several processes: each takes a share of every batch's rows, together they make the step of one process.

Gradients are summed over processes (torch.distributed: gloo on CPUs, nccl on CUDA). DistributedDataParallel averages
them, which is right only if all processes hold equally many labels of each task, and fails where a head has none. Here
each loss is divided by the labels of all processes, and a gradient that is missing in some of them counts as zero.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .tasks import IGNORE


def start() -> None:
    """Join the other processes, if `python -m torch.distributed.run` started several; what `fit` calls first."""
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and not dist.is_initialized():
        if cuda := torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if cuda else "gloo")


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0. Process 0 alone writes and prints."""
    return dist.get_rank() if world() > 1 else 0


def same_start(model: nn.Module, seed: int) -> None:
    """Give every process the weights of process 0, and random numbers (for dropout) of its own."""
    torch.manual_seed(seed + 7919 * rank())
    for tensor in model.state_dict().values() if world() > 1 else ():
        dist.broadcast(tensor, src=0)


def own_rows(rows: Sequence[int]) -> list[int]:
    """This process's part of a batch's rows: every `world`-th. Never empty: see `without_labels`."""
    return list(rows[rank() :: world()] or rows[:1])


def without_labels(labels: Mapping[str, Tensor], rows: Sequence[int]) -> dict[str, Tensor]:
    """The labels of `own_rows`: none of them count where a batch has fewer rows than there are processes."""
    return {name: torch.full_like(codes, IGNORE) if rank() >= len(rows) else codes for name, codes in labels.items()}


def summed(values: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Each number summed over processes: {task: labels}, {task: share of the loss}. The same keys in all of them."""
    if world() == 1:
        return dict(values)
    sums = torch.tensor(list(values.values()), dtype=torch.float64).to(device)
    dist.all_reduce(sums)
    return dict(zip(values, sums.tolist(), strict=True))


def sum_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Each gradient becomes the sum over processes; one that is missing here counts as zero.

    Where all lack it, it stays missing, so that Adam passes the parameter over as it does in a single process.
    """
    if world() == 1:
        return
    parameters = list(parameters)
    pieces = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    has = torch.tensor([p.grad is not None for p in parameters], dtype=pieces[0].dtype, device=pieces[0].device)
    flat = torch.cat([has, *(piece.flatten() for piece in pieces)])
    dist.all_reduce(flat)
    sums = flat[len(has) :].split([p.numel() for p in parameters])
    for parameter, total, anywhere in zip(parameters, sums, flat[: len(has)].tolist(), strict=True):
        parameter.grad = total.view_as(parameter) if anywhere else None


def of_all(state: Tensor) -> Tensor:
    """A tensor of each process, such as its random state, stacked: (world, ...). All processes must call it."""
    states = [torch.empty_like(state) for _ in range(world())]
    if world() > 1:
        dist.all_gather(states, state)
    return torch.stack(states) if world() > 1 else state[None]
