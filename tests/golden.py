"""Fingerprints of short runs and of outputs, to see that a change of the code changes no bit.

python tests/golden.py          print what differs from golden.json (same processor and versions: nothing may)
python tests/golden.py --save   write golden.json anew, for a change that is meant to change results

Every kind of balancing with three strategies of freezing, each straight through and interrupted and resumed, in
float32 on one thread; then vectors and predictions of the bundled MiniLM.
"""

import contextlib
import hashlib
import json
import sys
import tempfile
import warnings
from itertools import product
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

import experiments.balancing_methods  # noqa: F401
from mtl_helpers import MultiTaskModel, SentenceEncoder, TaskSampling, TrainingConfig, fit, freeze, load_corpus

FILE = Path(__file__).with_name("golden.json")
BALANCING = ("fixed", "uncertainty", "dynamic_weight_average", "gradnorm", "pcgrad")
STRATEGIES = {
    "full training": ("full_training", {}),
    "lower layers frozen": ("lower_layers", {"layers": 3}),
    "heads first": ("probe_then_finetune", {"epochs": 1}),
}
OTHERS = {
    "cosine, Adam": {"schedule": "cosine", "optimizer": "adam"},
    "step": {"schedule": "step"},
    "in turns": {"sampling": TaskSampling(order="round_robin", rows=60)},
    "mixed batches": {"sampling": TaskSampling(alpha=0, order="mixed", rows=60), "balancing": "pcgrad"},
    "focal loss": {"class_balance": {"topic": "focal", "sentiment": "inverse"}, "keep": "best"},
}


def machine() -> dict[str, str]:
    """What the last bits depend on."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "processor": model[0].partition(":")[2].strip() if model else "unknown",
        "capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
    }


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Sixteen digits that change with any bit of any tensor."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].detach().contiguous().numpy().tobytes())
    return total.hexdigest()[:16]


@contextlib.contextmanager
def killed_after(steps: int):
    """Stop as Ctrl-C does, after so many optimizer steps of the model."""
    count = 0

    def stop(optimizer: torch.optim.Optimizer, *_: object) -> None:
        nonlocal count
        count += "peak" in optimizer.param_groups[0]
        if count == steps:
            raise KeyboardInterrupt

    handle = register_optimizer_step_post_hook(stop)
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        handle.remove()


def train(strategy: str, options: dict, resumed: bool = False, **settings) -> str:
    """Fingerprint of the weights after three short epochs."""
    corpus = load_corpus()
    rows = corpus[corpus["text"].str.len() < 60]
    tables = [rows[rows["split"] == split].head(n) for split, n in (("train", 48), ("validation", 24))]
    torch.manual_seed(0)
    model = MultiTaskModel(SentenceEncoder.from_pretrained())
    freeze(model, strategy, **options)
    usual = {"epochs": 3, "precision": "float32", "max_tokens": 256, "checkpoint_every": 2, "keep": "last", "seed": 1}
    config = TrainingConfig(**(usual | {"task_weights": {"entities": 10.0}} | settings))
    with tempfile.TemporaryDirectory() as folder:
        if resumed:
            with killed_after(7):
                fit(model, *tables, config, directory=folder)
            torch.manual_seed(0)
            model = MultiTaskModel(SentenceEncoder.from_pretrained())
            freeze(model, strategy, **options)
        fit(model, *tables, config, directory=folder if resumed else None)
    return digest(model.state_dict())


def golden() -> dict[str, str]:
    """{what: fingerprint}."""
    torch.set_num_threads(1)
    fingerprints = {}
    for balancing, name, resumed in product(BALANCING, STRATEGIES, (False, True)):
        key = f"{balancing}, {name}{', resumed' * resumed}"
        fingerprints[key] = train(*STRATEGIES[name], resumed, balancing=balancing)
    for name, settings in OTHERS.items():
        fingerprints[name] = train(*STRATEGIES["full training"], **settings)
    texts = [*load_corpus()["text"].head(200), "", "  ", "Zsófia's", "word " * 600]
    torch.manual_seed(0)
    model = MultiTaskModel(SentenceEncoder.from_pretrained()).eval()
    fingerprints["encode"] = digest({"": model.encoder.encode(texts)})
    for pooling in ("cls", "max", "weighted", "last_layers"):
        fingerprints[f"encode, {pooling}"] = digest(
            {"": SentenceEncoder.from_pretrained(pooling=pooling).encode(texts)}
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = model.predict(texts)
    fingerprints["predict"] = hashlib.sha256(table.to_json(double_precision=15).encode()).hexdigest()[:16]
    return fingerprints


def main() -> int:
    """Compare or save; returns the exit code."""
    now = {"machine": machine(), "fingerprints": golden()}
    if "--save" in sys.argv:
        FILE.write_text(json.dumps(now, indent=2) + "\n")
        return 0
    before = json.loads(FILE.read_text())
    for name in ("processor", "capability", "torch"):
        if before["machine"][name] != now["machine"][name]:
            print(f"another {name}: {before['machine'][name]} then, {now['machine'][name]} now")
    differ = [key for key, value in before["fingerprints"].items() if now["fingerprints"].get(key) != value]
    print(f"{len(differ)} of {len(before['fingerprints'])} fingerprints differ", *differ, sep="\n  ")
    return int(bool(differ))


if __name__ == "__main__":
    sys.exit(main())
