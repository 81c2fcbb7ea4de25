"""Do two processes train to the weights of one? Beside them the plain mean of gradients.

    python -m experiments.two_processes

Writes data/results/two_processes.csv. The rows lack three quarters of the topics, so that the processes of a step
seldom hold equally many labels. Without dropout: which process has a row must not matter.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mtl_helpers import MultiTaskModel, SentenceEncoder, TrainingConfig, distributed, fit, load_corpus

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"
WAYS = (("one process", 1), ("two processes", 2), ("two processes, mean of means", 2))
ROWS = 320


def mean_of_means() -> None:
    """What DistributedDataParallel does: each process averages over its own labels, then gradients are averaged."""
    summing = distributed.sum_gradients

    def average(parameters: Iterable[nn.Parameter]) -> None:
        parameters = list(parameters)
        summing(parameters)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad /= distributed.world()

    distributed.summed, distributed.sum_gradients = lambda values, device: dict(values), average


def work(folder: Path, way: str) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    distributed.start()
    if way.endswith("mean of means"):
        mean_of_means()
    corpus = load_corpus()
    rows = corpus[corpus["split"] == "train"].iloc[:ROWS].copy()
    rows.loc[rows.index[ROWS // 4 :], "topic"] = None
    model = MultiTaskModel.from_pretrained(folder)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    config = TrainingConfig(epochs=1, precision="float32", keep="last", seed=0)
    history = fit(model, rows, corpus[corpus["split"] == "validation"].iloc[:20], config)
    if distributed.rank() == 0:
        save_file(model.state_dict(), folder / f"{way}.safetensors")
        (folder / f"{way}.steps").write_text(str(len(history.steps)))
    if distributed.world() > 1:
        torch.distributed.destroy_process_group()


def main() -> None:
    """Start the processes, compare their weights, write a row each."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        MultiTaskModel(SentenceEncoder.from_pretrained()).save_pretrained(folder)
        for way, processes in WAYS:
            many = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            command = [sys.executable, *(many if processes > 1 else ()), "-m", "experiments.two_processes", folder, way]
            subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            weights, first = (load_file(Path(folder) / f"{name}.safetensors") for name in (way, WAYS[0][0]))
            # The bias of the keys changes no answer: its gradient is rounding error, which Adam makes as long as any.
            away = max((weights[n] - first[n]).abs().max().item() for n in first if not n.endswith("key.bias"))
            steps = int((Path(folder) / f"{way}.steps").read_text())
            rows.append({"way": way, "processes": processes, "steps": steps, "largest_difference": away})
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(RESULTS / "two_processes.csv", index=False)


if __name__ == "__main__":
    if len(sys.argv) > 2:
        work(Path(sys.argv[1]), sys.argv[2])
    else:
        main()
