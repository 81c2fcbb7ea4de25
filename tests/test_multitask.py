"""One pass, every head: shapes, masked losses, predictions, and what is saved and loaded."""

import json
import math
import pickle
import shutil
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from torch.nn import functional as F

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, Task, multitask
from mtl_helpers.batches import make_examples
from mtl_helpers.folders import sha256_of
from mtl_helpers.tasks import IGNORE

OWN = (Task("stars", ("1", "2", "3", "4", "5")), Task("dishes", ("FOOD", "DRINK"), level="token"))
TEXTS = [
    "",
    " \t\n",
    "Behold!",
    "Ana Duarte flew from Oslo to Łódź on Saturday, and nobody knew why she did.",
    "😀 שלום \0 e\u0301 \u200b [SEP]",
    "Behold!",
]
same = pd.testing.assert_frame_equal


@pytest.fixture
def rows(short: pd.DataFrame) -> pd.DataFrame:
    """Eight short sentences, some with entities; the first has no topic, the last is not labelled for entities."""
    rows = short[:8].reset_index(drop=True)
    rows.at[0, "topic"] = rows.at[7, "entities"] = None
    return rows


@pytest.fixture
def batch(model: MultiTaskModel, rows: pd.DataFrame) -> dict:
    return model.batch(model.examples(rows))


# --------------------------------------------------------------------------------------------------- the forward pass


def test_the_forward_pass_is_one_pass_through_the_backbone_and_then_the_heads(family_dir, rows):
    torch.manual_seed(0)
    model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dir)).eval()
    passes = []
    model.encoder.backbone.register_forward_hook(lambda *_: passes.append(1))
    batch = model.batch(model.examples(rows))
    B, T = batch["input_ids"].shape
    logits = model(batch)
    assert len(passes) == 1
    shapes = {name: tuple(scores.shape) for name, scores in logits.items()}
    assert shapes == {"topic": (B, 6), "sentence_type": (B, 3), "sentiment": (B, 3), "entities": (B, T, 7)}
    states = model.encoder.hidden(batch)
    vectors = model.encoder.vectors(states, batch["attention_mask"])
    mask = {"attention_mask": batch["attention_mask"]}
    for answered in (model.answer(states, batch), model.answer(states[-1:], mask)):
        assert all(torch.equal(answered[name], scores) for name, scores in logits.items())
    for task in TASKS:
        inputs = states[-1] if task.level == "token" else vectors
        torch.testing.assert_close(logits[task.name], model.heads[task.name](inputs))


def test_padding_changes_no_score(model):
    texts = pd.DataFrame({"text": ["Behold!", TEXTS[3]]})
    examples = model.examples(texts)
    assert examples == make_examples(texts, model.encoder.tokenizer, TASKS, 64)
    batch = model.batch(examples)
    assert set(batch["input_ids"][batch["attention_mask"] == 0].tolist()) == {model.encoder.tokenizer.pad_token_id}
    alone, beside = model(model.batch(examples[:1])), model(batch)
    tokens = len(examples[0]["input_ids"])
    for task in TASKS:
        scores = beside[task.name][:1, :tokens] if task.level == "token" else beside[task.name][:1]
        torch.testing.assert_close(scores, alone[task.name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("tasks", [TASKS[:1], TASKS[3:], TASKS[::-1], OWN], ids=len)
def test_any_set_of_tasks(tasks: tuple, head: str, tiny, tmp_path):
    model = MultiTaskModel(tiny, tasks, head=head, dropout=0.25)
    columns = [name for t in tasks for name in [t.name, f"{t.name}_probability"][: 1 + (t.level == "sentence")]]
    assert list(model.predict(["Good soup."]).columns) == ["text", *columns]
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert (again.tasks, again.head, again.dropout) == (tuple(tasks), head, 0.25)
    assert {m.p for m in again.heads.modules() if isinstance(m, torch.nn.Dropout)} == {0.25}
    same(again.predict(TEXTS), model.predict(TEXTS))


def test_heads_of_two_layers_are_not_linear(family_dirs):
    encoder = SentenceEncoder.from_pretrained(family_dirs["bert"], projection=8)
    for head in ("linear", "mlp"):
        model = MultiTaskModel(encoder, head=head).eval()
        line = torch.arange(3.0)[:, None] * torch.ones(8)  # a projection feeds the sentence heads only
        low, middle, high = model.heads["topic"](line)
        assert torch.allclose(middle - low, high - middle, atol=1e-4) == (head == "linear")
        assert model.heads["entities"][-1].in_features == 32
        assert len(model.predict(TEXTS)) == len(TEXTS)


COLLIDING = [Task("a_probability", ("x", "y")), Task("a", ("x", "y"))]
REFUSED = {  # what is said: tasks, head
    "each name once": ([TASKS[0], TASKS[0]], "linear"),
    "at least one": ([], "linear"),
    "head is 'deep', expected 'linear' or 'mlp'": (TASKS, "deep"),
    "'a' and 'a_probability' would share a column of predict; rename": (COLLIDING, "linear"),
    "'keys' is also a method of PyTorch's ModuleDict": ([Task("keys", ("a", "b"))], "linear"),
    "'training' is also": ([Task("training", ("a", "b"))], "linear"),
}


@pytest.mark.parametrize("message", REFUSED)
def test_impossible_models_are_refused(message: str, tiny):
    with pytest.raises(ValueError, match=message):
        MultiTaskModel(tiny, *REFUSED[message])


# ----------------------------------------------------------------------------------------------------------- the loss


def test_each_loss_is_the_mean_over_the_labels_there_are(model, batch):
    logits = {name: scores.detach() for name, scores in model(batch).items()}
    losses = model.loss(logits, batch["labels"])
    assert list(losses) == [task.name for task in TASKS]
    for task in TASKS:
        by_hand = [
            -math.log(math.exp(scores[label]) / sum(math.exp(score) for score in scores))
            for scores, label in zip(
                logits[task.name].flatten(0, -2).tolist(), batch["labels"][task.name].flatten().tolist(), strict=True
            )
            if label != IGNORE
        ]
        assert losses[task.name].item() == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)
    twice = {name: torch.cat([scores, 3 * scores]) for name, scores in logits.items()}  # more rows, without labels
    labels = {name: torch.cat([codes, torch.full_like(codes, IGNORE)]) for name, codes in batch["labels"].items()}
    for name, loss in model.loss(twice, labels).items():
        assert loss.item() == pytest.approx(losses[name].item(), abs=1e-6)
    doubled = {"topic": lambda scores, codes: 2 * F.cross_entropy(scores, codes, reduction="none", ignore_index=IGNORE)}
    for name, loss in model.loss(logits, batch["labels"], doubled).items():
        assert loss.item() == pytest.approx((1 + (name == "topic")) * losses[name].item(), rel=1e-5)


@pytest.mark.parametrize("way", ["all ignored", "not in the batch"])
@pytest.mark.parametrize("name", ["topic", "entities"])
def test_a_task_without_any_label_costs_nothing_and_teaches_nothing(name: str, way: str, model, batch):
    if way == "all ignored":
        batch["labels"][name].fill_(IGNORE)
    else:
        del batch["labels"][name]
    losses = model.loss(model(batch), batch["labels"])
    assert losses[name].item() == 0.0
    assert all(loss.item() > 0 for other, loss in losses.items() if other != name)
    losses[name].backward(retain_graph=True)
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert not model.heads[name][-1].weight.grad.any()
    assert model.heads["sentiment"][-1].weight.grad.any()


def test_a_batch_can_be_learnt_by_heart(model, short):
    torch.manual_seed(0)
    rows = short[:8].reset_index(drop=True)
    batch = model.batch(model.examples(rows))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model.loss(model(batch), batch["labels"]).values()).backward()
        optimizer.step()
    predicted = model.predict(rows["text"])
    for task in TASKS[:3]:
        assert predicted[task.name].tolist() == rows[task.name].tolist()
    assert [[span[:3] for span in spans] for spans in predicted["entities"]] == rows["entities"].tolist()
    assert any(rows["entities"])


# -------------------------------------------------------------------------------------------------------- predictions


def test_predictions_on_odd_texts(model):
    predicted = model.predict(TEXTS)
    assert predicted["text"].tolist() == TEXTS
    for task in TASKS[:3]:
        assert set(predicted[task.name]) <= set(task.labels)
        assert predicted[f"{task.name}_probability"].between(1 / len(task.labels), 1).all()
    spans = [(text, span) for text, row in zip(TEXTS, predicted["entities"], strict=True) for span in row]
    assert spans
    for text, (start, end, label, surface) in spans:
        assert 0 <= start < end <= len(text)
        assert surface == text[start:end] and label in TASKS[3].labels
    with torch.inference_mode():
        probabilities = F.softmax(model(model.batch(model.examples(pd.DataFrame({"text": TEXTS[2:3]}))))["topic"][0], 0)
    assert predicted["topic"][2] == TASKS[0].labels[probabilities.argmax()]
    assert predicted["topic_probability"][2] == pytest.approx(probabilities.max().item(), abs=1e-6)


def test_predictions_come_in_the_order_of_the_texts_in_whatever_form(model):
    together = model.predict(TEXTS, max_tokens=16)
    for i, text in enumerate(TEXTS):
        same(together[i : i + 1].reset_index(drop=True), model.predict([text]), atol=1e-5)
    expected = model.predict(TEXTS)
    for form in (pd.Series(TEXTS, index=[5, 5, 3, 2, 1, 0]), tuple(TEXTS), (text for text in TEXTS)):
        same(model.predict(form), expected)
    none = model.predict([])
    assert len(none) == 0 and list(none.columns) == list(expected.columns)


def test_what_is_no_list_of_texts_is_refused(model):
    for wrong in ("Behold!", b"Behold!"):
        with pytest.raises(TypeError, match=r"found one string, expected a list of strings: write \[text\]"):
            model.predict(wrong)
    for wrong in (pd.DataFrame({"id": [1], "text": ["Hi."]}), {"text": ["Hi."]}):
        with pytest.raises(TypeError, match=r"expected a list of strings: write table\['text'\] for the texts of a ta"):
            model.predict(wrong)


def test_texts_that_are_cut_are_counted_in_one_warning(model):
    with pytest.warns(UserWarning, match="2 texts were cut after 64 tokens") as warned:
        predicted = model.predict(["short", "word " * 1000, "long " * 1000])
    assert len(warned) == 1 and warned[0].filename == __file__  # points to the caller's line
    assert len(predicted) == 3


def test_predictions_of_a_model_in_training_mode_are_without_noise_in_several_threads_too(model):
    texts = TEXTS[2:] * 10
    expected = model.predict(texts)
    model.train()
    model.encoder.eval()
    modes = [module.training for module in model.modules()]
    same(model.predict(texts), expected)
    assert [module.training for module in model.modules()] == modes and True in modes and False in modes
    with ThreadPoolExecutor(8) as pool:
        for predicted in pool.map(lambda _: model.predict(texts), range(24)):
            same(predicted, expected)
    assert [module.training for module in model.modules()] == modes


def test_another_number_format_and_a_copy_by_pickle_predict_the_same(family_dir):
    torch.manual_seed(0)
    encoder = SentenceEncoder.from_pretrained(family_dir, projection=16)
    model = MultiTaskModel(encoder, head="mlp").eval()
    expected = model.predict(TEXTS)
    same(pickle.loads(pickle.dumps(model)).predict(TEXTS), expected)
    same(model.double().predict(TEXTS), expected, atol=1e-4)
    for narrow in (torch.bfloat16, torch.half):
        predicted = model.float().to(narrow).predict(TEXTS)
        names = ["topic_probability", "sentence_type_probability", "sentiment_probability"]
        same(predicted[names], expected[names], atol=0.15, check_exact=False)
        assert all(set(predicted[task.name]) <= set(task.labels) for task in TASKS[:3])
        assert torch.isfinite(model.encoder.encode(TEXTS)).all()


# --------------------------------------------------------------------------------------------------- saving and loading


@pytest.fixture
def saved(model: MultiTaskModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_is_the_same_model_and_needs_no_network(model, saved, monkeypatch):
    def no_socket(*args, **kwargs):
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    monkeypatch.setenv("HOME", str(saved.parent))
    for path in (saved, str(saved), "~/saved"):
        again = MultiTaskModel.from_pretrained(path)
        assert not again.training
        assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    same(again.predict(TEXTS), model.predict(TEXTS))
    assert torch.equal(again.encoder.encode(TEXTS), model.encoder.encode(TEXTS))
    again.save_pretrained("~/other")
    same(MultiTaskModel.from_pretrained(saved.parent / "other").predict(TEXTS), model.predict(TEXTS))
    assert SentenceEncoder.from_pretrained().dim == 384


def test_the_encoder_of_a_saved_model_is_a_sentence_transformer(family_dirs, tmp_path):
    settings = {"pooling": "weighted", "projection": 8, "max_length": 9}
    encoder = SentenceEncoder.from_pretrained(family_dirs["mpnet"], **settings)
    MultiTaskModel(encoder).save_pretrained(tmp_path)
    expected = torch.as_tensor(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS))
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=0)
    assert torch.equal(MultiTaskModel.from_pretrained(tmp_path).encoder.encode(TEXTS), encoder.encode(TEXTS))


def test_saving_over_a_save_replaces_it_and_spares_other_files(saved, family_dirs):
    (saved / "runs").mkdir()
    (saved / "runs" / "log.txt").write_text("mine")
    other = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["roberta"], projection=8), OWN, head="mlp")
    other.save_pretrained(saved)
    same(MultiTaskModel.from_pretrained(saved).predict(TEXTS), other.predict(TEXTS))
    assert (saved / "runs" / "log.txt").read_text() == "mine"


def test_a_save_that_fails_leaves_the_old_one(model, saved, tiny, monkeypatch):
    def disk_full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(multitask, "save_file", disk_full)
    with pytest.raises(OSError, match=r"saved: nothing saved \(no space left on device\)"):
        MultiTaskModel(tiny, OWN).save_pretrained(saved)
    same(MultiTaskModel.from_pretrained(saved).predict(TEXTS), model.predict(TEXTS))
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]


def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """A change of tasks.json by hand."""

    def apply(folder: Path) -> None:
        settings = json.loads((folder / "tasks.json").read_text())
        change(settings)
        (folder / "tasks.json").write_text(json.dumps(settings))

    return apply


def cut(name: str, keep: int) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:keep])


FILES = ("heads.safetensors", "model.safetensors", "encoder.json")
EXPECTED = r"saved: holds no tasks\.json, expected a folder written by MultiTaskModel\.save_pretrained"
EDITED = "tasks.json: its tasks or labels are not those that the heads were trained with, .* save the model again"
DAMAGED = {  # what happened: (what is done to the folder, kind of error, what is said)
    **{f"without {name}": (lambda f, name=name: (f / name).unlink(), FileNotFoundError, name) for name in FILES},
    "a byte less of the heads": (cut("heads.safetensors", -1), ValueError, r"heads\.safetensors: its SHA-256"),
    "a folder of another kind": (lambda f: (f / "tasks.json").unlink(), FileNotFoundError, EXPECTED),
    **{f"cut {name}": (cut(name, -20), ValueError, f"{name}: damaged") for name in ("tasks.json", "encoder.json")},
    "no tasks in it": (edit(lambda s: s.pop("tasks")), ValueError, r"tasks\.json: not as save_pretrained writes it"),
    "labels swapped": (edit(lambda s: s["tasks"][0]["labels"].reverse()), ValueError, EDITED),
    "a task less": (edit(lambda s: s["tasks"].pop()), ValueError, EDITED),
    "another head": (edit(lambda s: s.__setitem__("head", "mlp")), ValueError, "tasks.json: describes other heads"),
    "a label twice": (edit(lambda s: s["tasks"][2]["labels"].append("neutral")), ValueError, "tasks.json: .*different"),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_a_damaged_save_is_refused_by_name(what: str, saved):
    damage, error, message = DAMAGED[what]
    damage(saved)
    with pytest.raises(error, match=message):
        MultiTaskModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["heads.safetensors", "model.safetensors", "the encoder saved over it"])
def test_files_of_different_saves_do_not_mix(name: str, saved, family_dirs, tmp_path):
    other = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["electra"]))
    if name.endswith("it"):
        other.encoder.save_pretrained(saved)
    else:
        other.save_pretrained(tmp_path / "other")
        shutil.copy(tmp_path / "other" / name, saved)
    with pytest.raises(ValueError, match=r"(model|heads)\.safetensors: its SHA-256"):
        MultiTaskModel.from_pretrained(saved)


def test_heads_of_an_older_save_which_do_not_name_their_tasks_are_read(model, saved):
    heads = saved / "heads.safetensors"
    save_file(load_file(heads), heads)
    edit(lambda settings: settings["sha256"].__setitem__(heads.name, sha256_of(heads)))(saved)
    same(MultiTaskModel.from_pretrained(saved).predict(TEXTS), model.predict(TEXTS))
