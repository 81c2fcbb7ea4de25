"""A saved model as ONNX: encoder and all heads in one graph, which `serving` runs without torch.

int8: weights and, at each call, the numbers between layers are rounded to 8 bits (dynamic quantisation). A smaller
file, more speed, and perhaps a worse model: a gate measures that first, and if it refuses tries a gentler form.
"""

import argparse
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from .batches import tokenize
from .corpus import load_corpus
from .csv_file import read_rows
from .evaluation import labelled, macro_f1, span_counts, span_f1
from .folders import read_json, replacing, sha256_of, write_json
from .intervals import bootstrap
from .multitask import MultiTaskModel
from .serving import FILES, SERVING, ServedModel
from .tables import CorpusError

MAY_LOSE = 0.01  # of macro-F1 or span F1: what int8 may cost a task
FEWEST = 300  # texts: with fewer even full agreement doesn't exclude a loss of a point (rule of three: 3 / n)
ABOUT = """Write model.onnx into the folder of a trained model: what `serve` needs, without torch.

--int8 also writes model.int8.onnx, smaller and faster, if it passes a gate: on the labelled rows of DATA.csv (without
those of the split train, if training used this file or it has a column split) the 95 % interval of the difference
between the two must exclude, for each task, a loss of more than a point. A gentler form (larger, slower) is tried too.

Examples:
  python -m mtl_helpers export model
  python -m mtl_helpers export model --int8 data/sentences.csv"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command `export`."""
    parser.add_argument("model", metavar="DIR", help="folder that train wrote")
    parser.add_argument("--int8", metavar="DATA.csv", help="labelled texts that int8 has to prove itself on")


def run(options: argparse.Namespace) -> None:
    """The command `export`: prints the gate's table, if there is one."""
    folder, rows = Path(options.model), None
    if options.int8:
        rows = load_corpus(options.int8, tasks=MultiTaskModel.from_pretrained(folder).tasks)
        trained_on = read_json(folder / "training.json").get("data") if (folder / "training.json").is_file() else None
        if trained_on == sha256_of(Path(options.int8)) or "split" in read_rows(Path(options.int8))[0]:
            rows = rows[rows["split"] != "train"].reset_index(drop=True)
        if not len(rows):
            raise CorpusError(f"{options.int8}: found only the split train, expected rows that were not trained on")
    table = export(folder, rows)
    if table is not None:
        print(table.to_string(index=False, float_format="{:.4f}".format))


def export(folder: str | Path, int8: pd.DataFrame | None = None) -> pd.DataFrame | None:
    """Write model.onnx and serving.json, and model.int8.onnx if wanted, into the folder of a saved model.

    Args:
        folder: as `MultiTaskModel.save_pretrained` wrote it.
        int8: labelled rows, not trained on, on which int8 is compared with fp32.

    Returns:
        The gate's table, see `compare`; None without `int8`.

    Raises:
        ValueError: int8 may cost a task more than a point. Names each; model.onnx is there, model.int8.onnx is not.
    """
    folder, table, refused = Path(folder), None, []
    model = MultiTaskModel.from_pretrained(folder)
    tokenizer = model.encoder.tokenizer
    settings = {"max_length": model.encoder.max_length, "pad_id": tokenizer.pad_token_id}
    settings["truncation_side"] = tokenizer.truncation_side
    with replacing(folder) as new:
        for name in ("tokenizer.json", "tasks.json"):
            shutil.copy(folder / name, new / name)

        def describe() -> None:
            hashes = {path.name: sha256_of(path) for path in sorted(new.iterdir()) if path.name != SERVING}
            gate = None if table is None else table.to_dict("records")
            write_json(new / SERVING, {**settings, "int8": gate, "sha256": hashes})

        write_onnx(model, new / FILES["fp32"])
        describe()
        check(model, ServedModel(new, "fp32"))
        for gentle in (False, True) if int8 is not None else ():
            quantise(new / FILES["fp32"], new / FILES["int8"], gentle)
            describe()
            table, refused = compare(new, int8)
            if not refused:
                break
        if refused:
            (new / FILES["int8"]).unlink()
        describe()
    if table is None or refused:
        (folder / FILES["int8"]).unlink(missing_ok=True)  # of an earlier export
    if refused:
        raise ValueError("\n  ".join(["int8 was not written, model.onnx (fp32) was:", *refused]))
    return table


def write_onnx(model: MultiTaskModel, path: Path) -> None:
    """Trace a model in eval mode into one graph: input_ids, attention_mask (B, T) -> logits.TASK for each task."""
    try:
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{error}; export needs it: pip install onnxscript") from error
    model.eval().encoder.backbone.set_attn_implementation("eager")  # gives the fewest operators
    length = min(7, model.encoder.max_length)
    ids = torch.full((2, length), model.encoder.tokenizer.pad_token_id + 1)
    mask = torch.ones_like(ids)
    mask[1, length // 2 + 1 :] = 0
    sizes = {0: torch.export.Dim("texts"), 1: torch.export.Dim("tokens", max=model.encoder.max_length)}
    names = [f"logits.{task.name}" for task in model.tasks]
    with warnings.catch_warnings(action="ignore"):
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            Graph(model), (ids, mask), dynamo=True, verbose=False, dynamic_shapes=(sizes, sizes),
            input_names=["input_ids", "attention_mask"], output_names=names,
        )  # fmt: skip
    for node in program.model.graph:
        node.metadata_props.clear()  # lines of our code and the paths of this machine
    program.save(path)


class Graph(nn.Module):
    """A model as a function of two tensors that gives a tuple: what can be traced."""

    def __init__(self, model: MultiTaskModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.model({"input_ids": input_ids, "attention_mask": attention_mask}).values())


def check(model: MultiTaskModel, served: ServedModel) -> None:
    """Raise ValueError if the graph doesn't answer as the model does, for batches and lengths it wasn't traced with."""
    texts, gaps = ["", "Behold!", "Ana Duarte flew to Oslo. " * 60], []
    own = [example["input_ids"] for example in tokenize(texts, model.encoder.tokenizer, model.encoder.max_length)]
    if own != [encoding.ids for encoding in served.tokenize(texts)]:
        raise ValueError("tokenizer.json cuts texts into other tokens than the model's tokenizer: can't be served")
    for row in own:
        ids = torch.tensor([row])
        with torch.inference_mode():
            alone = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
        gaps += [np.abs(a - b.numpy()).max() for a, b in zip(served._run([row] * 3), alone.values(), strict=True)]
    furthest = float(np.max(gaps))
    if not furthest < 1e-3:  # NaN, too
        kind = model.encoder.backbone.config.model_type
        raise ValueError(f"the exported {kind} gives other scores than the model (by {furthest:.2g}): can't be served")


def quantise(fp32: Path, int8: Path, gentle: bool) -> None:
    """Rounded to 8 bits, with a scale for each channel of the weights and each call, or, gentle, each 32 numbers.

    The first is smaller (the word vectors are rounded too) and faster, the second much nearer to fp32.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    model = onnx.load(fp32)
    del model.graph.value_info[:]  # shapes from before: quantising turns the heads' weights round and trips over them
    logging.disable(logging.WARNING)  # onnxruntime advises a preprocessing that changes nothing here
    try:
        if gentle:
            how = DefaultWeightOnlyQuantConfig(block_size=32, is_symmetric=True, accuracy_level=4, bits=8)
            quantizer = MatMulNBitsQuantizer(model, algo_config=how)
            quantizer.process()
            quantizer.model.save_model_to_file(str(int8))
        else:  # per tensor, or with reduce_range, every tenth span comes out otherwise
            quantize_dynamic(model, int8, per_channel=True, reduce_range=False, weight_type=QuantType.QInt8)
    finally:
        logging.disable(logging.NOTSET)


def compare(folder: str | Path, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """int8 against fp32 on labelled rows.

    Returns:
        A row per task: task, texts, agreement (share of texts with the same answer), fp32 and int8 (macro-F1 or span
        F1), difference, low, high (95 % interval, paired bootstrap over texts); a sentence for each task that may lose.
    """
    models = [ServedModel(folder, precision) for precision in ("fp32", "int8")]
    answers = [pd.DataFrame(model.predict(list(rows["text"]))[0]).map(_plain) for model in models]
    table, refused = [], []
    for task in models[0].tasks:
        (truth, fp32), (_, int8) = (labelled(task, rows, answer) for answer in answers)
        if len(truth) < FEWEST:
            refused.append(
                f"task {task.name}: only {len(truth)} labelled texts, {FEWEST} can exclude a loss of a point"
            )
            continue
        count = span_counts if task.level == "token" else lambda *columns: np.column_stack(columns)
        score = span_f1 if task.level == "token" else lambda columns: macro_f1(*columns.T)
        sides = [count(truth, side) for side in (fp32, int8)]
        change = bootstrap(lambda a, b, score=score: score(b) - score(a), *sides)
        agreement = float(np.mean([a == b for a, b in zip(fp32, int8, strict=True)]))
        table.append([task.name, len(truth), agreement, *map(score, sides), *change])
        if change.low < -MAY_LOSE:
            points = [f"{100 * value:+.1f}" for value in change]
            refused.append(f"task {task.name}: {points[0]} points ({points[1]} to {points[2]}) on {len(truth)} texts")
    columns = ["task", "texts", "agreement", "fp32", "int8", "difference", "low", "high"]
    return pd.DataFrame(table, columns=columns), refused


def _plain(answer: dict | list) -> str | list[tuple]:
    return [tuple(span.values()) for span in answer] if isinstance(answer, list) else answer["label"]
