"""Export and inference without torch: the same answers, no torch, nothing sent home."""

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import FAMILIES

from mtl_helpers import MultiTaskModel
from mtl_helpers import export as export_module
from mtl_helpers.export import export
from mtl_helpers.serving import FILES, ServedModel, cores

STRANGE = [
    "",
    " ",
    "Behold!",
    "Could Ana Duarte send the minutes to Łódź before Friday?",
    "Wir sahen Rene\u0301 dort.",
    "👩\u200d👩\u200d👧 visited 東京 and مكة",
    "a\0b\r\nc\tAna",
    "Ana Duarte " * 400,
]


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_logits_are_those_of_the_model_whatever_the_batch(exported: Callable[[str], Path], family: str):
    folder = exported(family)
    model, served = MultiTaskModel.from_pretrained(folder), ServedModel(folder)
    with warnings.catch_warnings(action="ignore"):  # that one text is cut
        expected = model.predict(STRANGE)
    answers, cut = served.predict(STRANGE)
    assert cut == [False] * 7 + [True]
    for task in model.tasks:
        if task.level == "token":
            keys = ("start", "end", "label", "surface")
            spans = [[tuple(span[key] for key in keys) for span in answer[task.name]] for answer in answers]
            assert spans == expected[task.name].tolist()
        else:
            assert [answer[task.name]["label"] for answer in answers] == expected[task.name].tolist()
            probabilities = [answer[task.name]["probability"] for answer in answers]
            np.testing.assert_allclose(probabilities, expected[f"{task.name}_probability"], atol=2e-5)
    encodings, seen = served.tokenize(STRANGE), set()
    for rows, logits in served.logits(encodings):
        for place, i in enumerate(rows):
            ids = torch.tensor([encodings[i].ids])
            with torch.inference_mode():
                alone = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            for task, scores in zip(model.tasks, logits, strict=True):
                ours = scores[place, : ids.shape[1]] if task.level == "token" else scores[place]
                assert np.abs(ours - alone[task.name][0].numpy()).max() < 2e-5
            seen.add(i)
    assert seen == set(range(len(STRANGE)))


def test_only_four_files_are_needed_and_damage_is_named(exported: Callable[[str], Path], tmp_path: Path):
    for name in ("model.onnx", "tokenizer.json", "tasks.json", "serving.json"):
        (tmp_path / name).write_bytes((exported("bert") / name).read_bytes())
    assert ServedModel(tmp_path).predict(["Behold!"]) == ServedModel(exported("bert")).predict(["Behold!"])
    tasks = tmp_path / "tasks.json"
    tasks.write_text(tasks.read_text().replace("business", "pleasure"))  # another save of the model
    with pytest.raises(ValueError, match=r"tasks\.json.*SHA-256"):
        ServedModel(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.int8\.onnx.*--int8"):
        ServedModel(exported("bert"), "int8")
    with pytest.raises(FileNotFoundError, match="mtl_helpers export"):
        ServedModel(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="'half'"):
        ServedModel(exported("bert"), "half")


def test_a_graph_that_answers_otherwise_is_not_written(exported: Callable[[str], Path], tmp_path: Path):
    model = MultiTaskModel.from_pretrained(exported("bert"))
    with torch.no_grad():
        model.heads["topic"][-1].bias += 1
    with pytest.raises(ValueError, match="exported bert gives other scores"):
        export_module.check(model, ServedModel(exported("bert"), "fp32"))


def test_no_path_of_this_machine_is_in_the_file(exported: Callable[[str], Path]):
    assert str(Path(export_module.__file__).parent).encode() not in (exported("bert") / "model.onnx").read_bytes()


@pytest.mark.parametrize("texts", ["one string", [1], ["fine", None]])
def test_what_is_no_list_of_strings_is_refused(exported: Callable[[str], Path], texts: object):
    with pytest.raises(TypeError, match="list of strings"):
        ServedModel(exported("bert")).predict(texts)


def test_half_a_surrogate_pair_is_refused_by_position(exported: Callable[[str], Path]):
    with pytest.raises(ValueError, match="text 1 holds half a surrogate pair"):
        ServedModel(exported("bert")).predict(["fine", "\ud83d"])


def test_serving_loads_no_torch_writes_nothing_and_calls_nobody(exported: Callable[[str], Path], tmp_path: Path):
    code = """if True:
        import os, sys
        import mtl_helpers, mtl_helpers.predictor, mtl_helpers.service
        from mtl_helpers.serving import ServedModel
        ServedModel(sys.argv[1]).predict(["Behold!"])
        heavy = {"torch", "transformers", "pandas", "matplotlib", "sklearn", "scipy"} & set(sys.modules)
        links = [os.readlink(f"/proc/self/fd/{n}") for n in os.listdir("/proc/self/fd") if n.isdigit() and int(n) > 2
                 and os.path.exists(f"/proc/self/fd/{n}")] if os.path.isdir("/proc/self/fd") else []
        sockets = [link for link in links if link.startswith("socket:")]
        assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
        print(sorted(heavy), sockets)
    """
    home = {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache"), "PATH": os.environ["PATH"]}
    home["PYTHONPATH"] = str(Path(export_module.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported("bert"))], env=home, capture_output=True, text=True, timeout=60
    )
    assert (done.stdout.strip(), done.stderr) == ("[] []", "")
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------------------------------------------ int8


@pytest.fixture
def no_tracing(exported: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch):
    """Export takes the fp32 graph that is there: tracing a model takes seconds."""
    monkeypatch.setattr(export_module, "write_onnx", lambda _, path: shutil.copy(exported("bert") / "model.onnx", path))


@pytest.fixture
def rows(corpus: pd.DataFrame) -> pd.DataFrame:
    return corpus.iloc[:320].reset_index(drop=True)


def test_int8_that_agrees_is_written_and_served(exported: Callable[[str], Path], rows: pd.DataFrame, no_tracing: None):
    folder = exported("bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export_module, "MAY_LOSE", 1.0)  # a random model of 32 dimensions may change its mind
        table = export(folder, rows)
    assert table["task"].tolist() == ["topic", "sentence_type", "sentiment", "entities"]
    assert (table["texts"] == 320).all() and (table["low"] <= table["difference"]).all()
    served = ServedModel(folder)
    assert served.precision == "int8" and json.loads((folder / "serving.json").read_text())["int8"]
    alone, among = served.predict(STRANGE[3:4])[0], served.predict(STRANGE)[0][3:4]
    assert alone == among  # an answer doesn't depend on the other texts of the request
    export(folder)
    assert not (folder / FILES["int8"]).exists() and ServedModel(folder).precision == "fp32"


def test_int8_that_loses_is_refused_by_task(
    exported: Callable[[str], Path], rows: pd.DataFrame, no_tracing: None, monkeypatch
):
    """A quantisation that forgets the answers of one task."""
    quantise = export_module.quantise

    def spoil(fp32: Path, int8: Path, gentle: bool) -> None:
        import onnx

        quantise(fp32, int8, True)
        model = onnx.load(int8)
        for tensor in model.graph.initializer:
            if "sentiment" in tensor.name and "weight" in tensor.name:
                values = onnx.numpy_helper.to_array(tensor)
                tensor.CopyFrom(onnx.numpy_helper.from_array(-values, tensor.name))
        onnx.save(model, int8)

    folder = exported("bert")
    model = ServedModel(folder)
    rows["sentiment"] = [answer["sentiment"]["label"] for answer in model.predict(list(rows["text"]))[0]]
    monkeypatch.setattr(export_module, "quantise", spoil)
    with pytest.raises(ValueError, match="task sentiment: -") as error:
        export(folder, rows)
    assert "model.onnx (fp32) was" in str(error.value)
    assert not (folder / FILES["int8"]).exists() and ServedModel(folder).precision == "fp32"


def test_too_few_rows_prove_nothing(exported: Callable[[str], Path], rows: pd.DataFrame, no_tracing: None):
    with pytest.raises(ValueError, match="task topic: only 40 labelled texts, 300 can exclude a loss of a point"):
        export(exported("bert"), rows.iloc[:40])


# ----------------------------------------------------------------------------------------------------- cores


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"cpu.max": "150000 100000\n"}, 1),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 64),
        ({"cpu.max": "400000 100000\n"}, 4),
        ({"cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 64),
        ({}, 64),
    ],
)
def test_cores_are_those_of_the_container(tmp_path: Path, monkeypatch, files: dict[str, str], limit: int):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores(str(tmp_path)) == limit


def test_texts_of_any_kind_are_read_by_position(exported: Callable[[str], Path]):
    served, texts = ServedModel(exported("bert")), ["Ana Duarte went to Oslo.", "Behold the city of Rome!"]
    expected = served.predict(texts)
    assert served.predict(text for text in texts) == expected
    assert served.predict(pd.Series(texts, index=[1, 0])) == expected


@pytest.mark.parametrize("text", ["{}", '{"sha256": 1, "max_length": 9, "pad_id": 0}', '{"sha256": {}}'])
def test_a_damaged_description_is_refused(text: str, exported: Callable[[str], Path], tmp_path: Path):
    folder = shutil.copytree(exported("bert"), tmp_path / "model")
    (folder / "serving.json").write_text(text)
    with pytest.raises(ValueError, match=r"serving\.json: not as export writes it .* python -m mtl_helpers export"):
        ServedModel(folder)


def test_an_export_does_not_outlive_the_model_it_was_made_of(exported: Callable[[str], Path], tmp_path: Path):
    folder = shutil.copytree(exported("bert"), tmp_path / "model")
    model = MultiTaskModel.from_pretrained(folder)
    model.encoder.pooling = "cls"
    model.save_pretrained(folder)
    with pytest.raises(FileNotFoundError, match=r"serving\.json: no such file"):
        ServedModel(folder)


def test_scores_that_are_no_numbers_are_not_exported(exported: Callable[[str], Path], tmp_path: Path):
    model = MultiTaskModel.from_pretrained(exported("bert"))
    with torch.no_grad():
        model.heads["topic"][-1].bias.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="scores of task topic are not finite numbers"):
        model.predict(["Behold!"])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"gives other scores than the model \(by nan\)"):
        export(tmp_path / "model")


def test_long_texts_are_cut_on_the_model_s_own_side(exported: Callable[[str], Path], tmp_path: Path):
    model = MultiTaskModel.from_pretrained(exported("bert"))
    model.encoder.tokenizer.truncation_side = "left"
    model.save_pretrained(tmp_path / "model")
    export(tmp_path / "model")
    text = "Ana went to Oslo. " * 40 + "Behold the minutes!"
    with warnings.catch_warnings(action="ignore"):
        expected = model.predict([text])
    answers, _ = ServedModel(tmp_path / "model").predict([text])
    assert answers[0]["topic"]["probability"] == pytest.approx(expected["topic_probability"][0], abs=2e-5)
