"""What each process does in test_distributed.py: python -m torch.distributed.run ... distributed_run.py FOLDER."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

import experiments.balancing_methods  # noqa: F401
from mtl_helpers import MultiTaskModel, TrainingConfig, distributed, fit, load_corpus

SETTINGS = {"epochs": 2, "max_tokens": 90, "learning_rate": 1e-3, "precision": "float32", "checkpoint_every": 3}


def table(folder: Path):
    """Rows of which few, and not the same in each process, are labelled for topic and entities."""
    return load_corpus(folder / "rows.csv")


def trained(folder: Path, dropout: bool, directory: Path | None = None) -> tuple[MultiTaskModel, object]:
    """A model after `fit`, without dropout (so that it doesn't matter which process has a row) or with it."""
    model = MultiTaskModel.from_pretrained(folder / "model")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) and not dropout:
            module.p = 0.0
    history = fit(model, table(folder), table(folder), TrainingConfig(**SETTINGS), directory)
    return model, history


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    distributed.start()
    torch.set_num_threads(1)
    model, history = trained(folder, dropout=False)
    save_file(model.state_dict(), folder / f"together-{distributed.rank()}.safetensors")
    if distributed.rank() == 0:
        history.to_frame().to_csv(folder / "together.csv", index=False)
    whole, _ = trained(folder, True, folder / "checkpoints")
    torch.distributed.barrier()
    if distributed.rank() == 0:
        sorted((folder / "checkpoints").glob("*-step-*.pt"))[-1].unlink()  # as if it had been killed before
    torch.distributed.barrier()
    resumed, _ = trained(folder, True, folder / "checkpoints")
    same = all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    (folder / f"resumed-{distributed.rank()}-{same}").touch()
    try:
        fit(model, table(folder), table(folder), TrainingConfig(**SETTINGS, balancing="pcgrad"))
    except ValueError as error:
        (folder / f"refused-{distributed.rank()}").write_text(str(error))
    torch.distributed.destroy_process_group()
