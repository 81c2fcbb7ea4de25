"""Two processes train to the weights of one."""

import subprocess
import sys
from pathlib import Path

import distributed_run
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from mtl_helpers import MultiTaskModel, distributed
from mtl_helpers.tasks import IGNORE


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, family_dirs: dict[str, Path], corpus: pd.DataFrame) -> Path:
    """After a run of two processes, and the one of a single process beside it."""
    from mtl_helpers import SentenceEncoder

    folder = tmp_path_factory.mktemp("distributed")
    torch.manual_seed(0)
    MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"])).save_pretrained(folder / "model")
    rows = corpus[corpus["text"].str.len() < 60].iloc[:31].copy()
    rows["entities"] = rows["entities"].map(lambda spans: str([list(span) for span in spans]).replace("'", '"'))
    rows.iloc[::3, rows.columns.get_loc("entities")] = ""
    rows.iloc[4:, rows.columns.get_loc("topic")] = ""
    rows[["text", "topic", "sentence_type", "sentiment", "entities"]].to_csv(folder / "rows.csv", index=False)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    worker = Path(__file__).with_name("distributed_run.py")
    done = subprocess.run([*command, str(worker), str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_two_processes_end_with_the_weights_of_one(folder: Path, one_thread: None):
    model, history = distributed_run.trained(folder, dropout=False)
    for rank in (0, 1):
        weights = load_file(folder / f"together-{rank}.safetensors")
        for name, tensor in model.state_dict().items():
            # The bias of the keys changes no answer: its gradient is rounding error, which Adam makes as long as any.
            if not name.endswith("key.bias"):
                assert (weights[name] - tensor).abs().max() < 1e-5, name
    ours, theirs = history.to_frame(), pd.read_csv(folder / "together.csv")
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_interrupted_run_goes_on_to_the_same_weights_in_each_process(folder: Path, rank: int):
    assert (folder / f"resumed-{rank}-True").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_methods_that_compare_gradients_of_whole_batches_are_refused_by_name(folder: Path, rank: int):
    assert "pcgrad" in (folder / f"refused-{rank}").read_text()


def test_a_process_without_rows_takes_part_without_labels(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(distributed, "world", lambda: 3)
    monkeypatch.setattr(distributed, "rank", lambda: 2)
    assert distributed.own_rows([8, 9]) == [8]
    labels = distributed.without_labels({"topic": torch.tensor([1])}, [8, 9])
    assert labels["topic"].tolist() == [IGNORE]
    assert distributed.own_rows([5, 6, 7, 8, 9, 10]) == [7, 10]
