"""One pass, every head: shapes, masked losses, predictions, and what is saved and loaded."""

import math
import shutil
import socket
from pathlib import Path

import huggingface_hub
import pandas as pd
import pytest
import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from torch.nn import functional as F

from mtl_helpers import TASKS, MultiTaskModel, SentenceEncoder, Task, multitask
from mtl_helpers.corpus import collate, make_examples
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


@pytest.fixture
def rows(corpus: pd.DataFrame) -> pd.DataFrame:
    """Eight short sentences with entities."""
    short = corpus["text"].str.len() < 60
    return corpus[short & corpus["entities"].map(bool)][:8].reset_index(drop=True)


@pytest.fixture
def batch(model: MultiTaskModel, rows: pd.DataFrame) -> dict:
    """The same as a batch; the first has no topic, the last is not labelled for entities."""
    rows.at[0, "topic"] = rows.at[7, "entities"] = None
    return collate(make_examples(rows, model.encoder.tokenizer, TASKS, 64), model.encoder.tokenizer.pad_token_id)


def heads_of(model: MultiTaskModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.heads.state_dict().items()}


# --------------------------------------------------------------------------------------------------- the forward pass


def test_shapes(model, batch):
    B, T = batch["input_ids"].shape
    logits = model(batch)
    shapes = {name: tuple(scores.shape) for name, scores in logits.items()}
    assert shapes == {"topic": (B, 6), "sentence_type": (B, 3), "sentiment": (B, 3), "entities": (B, T, 7)}


def test_all_tasks_take_one_pass_through_the_backbone(model, batch):
    passes = []
    model.encoder.backbone.register_forward_hook(lambda *args: passes.append(1))
    model(batch)
    assert len(passes) == 1


def test_padding_changes_no_score(model):
    tokenizer = model.encoder.tokenizer
    examples = make_examples(pd.DataFrame({"text": ["Behold!", TEXTS[3]]}), tokenizer, [], 64)
    alone = model(collate(examples[:1], tokenizer.pad_token_id))
    beside = model(collate(examples, tokenizer.pad_token_id))
    tokens = len(examples[0]["input_ids"])
    for task in TASKS:
        scores = beside[task.name][:1, :tokens] if task.level == "token" else beside[task.name][:1]
        torch.testing.assert_close(scores, alone[task.name], atol=1e-5, rtol=0)


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("tasks", [TASKS[:1], TASKS[3:], TASKS[2:], TASKS[::-1], OWN], ids=len)
def test_any_set_of_tasks(tasks: tuple, head: str, tiny, tmp_path):
    model = MultiTaskModel(tiny, tasks, head=head)
    assert list(model.predict(["Good soup."]).columns) == ["text"] + [
        column
        for task in tasks
        for column in ([task.name, f"{task.name}_probability"] if task.level == "sentence" else [task.name])
    ]
    model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert again.tasks == tuple(tasks)
    pd.testing.assert_frame_equal(again.predict(TEXTS), model.predict(TEXTS))


@pytest.mark.parametrize("name", ["type", "keys", "train", "training", "entities_probability"])
def test_a_task_may_be_named_like_a_part_of_torch(name: str, tiny, tmp_path):
    try:
        model = MultiTaskModel(tiny, [Task(name, ("a", "b"))])
    except ValueError:
        return  # refusing such a name clearly is as good
    model.save_pretrained(tmp_path)
    assert set(MultiTaskModel.from_pretrained(tmp_path).predict(TEXTS)[name]) <= {"a", "b"}


def test_heads_of_two_layers_are_not_linear(tiny):
    def scores_along_a_line(model: MultiTaskModel) -> Tensor:
        line = torch.arange(3.0)[:, None] * torch.ones(32)
        return model.eval().heads["topic"](line)

    low, middle, high = scores_along_a_line(MultiTaskModel(tiny, head="linear"))
    torch.testing.assert_close(middle - low, high - middle)
    low, middle, high = scores_along_a_line(MultiTaskModel(tiny, head="mlp"))
    assert not torch.allclose(middle - low, high - middle, atol=1e-3)


def test_a_projection_feeds_the_sentence_heads_only(family_dirs):
    model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"], projection=8))
    assert model.heads["topic"][-1].in_features == 8
    assert model.heads["entities"][-1].in_features == 32
    assert len(model.predict(TEXTS)) == len(TEXTS)


def test_impossible_models_are_refused(tiny):
    with pytest.raises(ValueError, match="each name once"):
        MultiTaskModel(tiny, [TASKS[0], TASKS[0]])
    with pytest.raises(ValueError, match="at least one"):
        MultiTaskModel(tiny, [])
    with pytest.raises(ValueError, match="head is 'deep', expected 'linear' or 'mlp'"):
        MultiTaskModel(tiny, head="deep")


# ----------------------------------------------------------------------------------------------------------- the loss


def test_each_loss_is_the_mean_over_the_labels_there_are(model, batch):
    logits = model(batch)
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


def test_rows_without_a_label_change_nothing(model, batch):
    logits = {name: scores.detach() for name, scores in model(batch).items()}
    twice = {name: torch.cat([scores, 3 * scores]) for name, scores in logits.items()}
    labels = {name: torch.cat([found, torch.full_like(found, IGNORE)]) for name, found in batch["labels"].items()}
    before, after = model.loss(logits, batch["labels"]), model.loss(twice, labels)
    for task in TASKS:
        assert after[task.name].item() == pytest.approx(before[task.name].item(), abs=1e-6)


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


def test_before_training_every_class_is_about_as_likely(encoder, corpus):
    torch.manual_seed(0)
    model = MultiTaskModel(encoder).eval()
    examples = make_examples(corpus[:48], encoder.tokenizer, TASKS, 256)
    batch = collate(examples, encoder.tokenizer.pad_token_id)
    with torch.inference_mode():
        losses = model.loss(model(batch), batch["labels"])
    for task in TASKS:
        assert losses[task.name].item() == pytest.approx(math.log(len(task.classes)), abs=0.15)


def test_a_batch_can_be_learnt_by_heart(model, rows):
    torch.manual_seed(0)
    batch = collate(make_examples(rows, model.encoder.tokenizer, TASKS, 64), model.encoder.tokenizer.pad_token_id)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        optimizer.zero_grad()
        sum(model.loss(model(batch), batch["labels"]).values()).backward()
        optimizer.step()
    found = model.predict(list(rows["text"]))
    for task in TASKS[:3]:
        assert found[task.name].tolist() == rows[task.name].tolist()
    assert [[span[:3] for span in spans] for spans in found["entities"]] == rows["entities"].tolist()


# -------------------------------------------------------------------------------------------------------- predictions


def test_predictions_on_odd_texts(model):
    found = model.predict(TEXTS)
    assert found["text"].tolist() == TEXTS
    for task in TASKS[:3]:
        assert set(found[task.name]) <= set(task.labels)
        assert found[f"{task.name}_probability"].between(1 / len(task.labels), 1).all()
    spans = [(text, span) for text, row in zip(TEXTS, found["entities"], strict=True) for span in row]
    assert spans
    for text, (start, end, label, surface) in spans:
        assert 0 <= start < end <= len(text)
        assert surface == text[start:end]
        assert label in TASKS[3].labels


def test_predictions_come_in_the_order_of_the_texts(model):
    together = model.predict(TEXTS, max_tokens=16)
    for i, text in enumerate(TEXTS):
        alone = model.predict([text])
        pd.testing.assert_frame_equal(together[i : i + 1].reset_index(drop=True), alone, atol=1e-5)


def test_texts_may_be_a_series_with_any_index_or_a_generator(model, corpus):
    texts = corpus.text[corpus.text.str.len() < 50][5:25]
    expected = model.predict(texts.tolist())
    assert model.predict(texts).equals(expected)
    assert model.predict(text for text in texts).equals(expected)


def test_probabilities_are_those_of_the_logits(model):
    examples = make_examples(pd.DataFrame({"text": ["Behold!"]}), model.encoder.tokenizer, [], 64)
    with torch.inference_mode():
        probabilities = F.softmax(model(collate(examples, 0))["topic"][0], dim=0)
    (row,) = model.predict(["Behold!"]).to_dict("records")
    assert row["topic"] == TASKS[0].labels[probabilities.argmax()]
    assert row["topic_probability"] == pytest.approx(probabilities.max().item(), abs=1e-6)


def test_no_texts_give_a_table_with_all_columns(model):
    found = model.predict([])
    assert len(found) == 0
    assert list(found.columns) == list(model.predict(["Behold!"]).columns)


def test_a_single_string_is_refused(model):
    with pytest.raises(TypeError, match="expected a list"):
        model.predict("Behold!")


def test_texts_that_are_cut_are_counted_in_one_warning(model):
    with pytest.warns(UserWarning, match="2 texts were cut after 64 tokens") as warned:
        found = model.predict(["short", "word " * 1000, "long " * 1000])
    assert len(warned) == 1
    assert warned[0].filename == __file__  # points to the caller's line
    assert len(found) == 3


def test_predict_runs_without_dropout_and_restores_the_mode(model):
    expected = model.predict(TEXTS)
    model.train()
    model.encoder.eval()
    pd.testing.assert_frame_equal(model.predict(TEXTS), expected)
    assert model.heads.training and not model.encoder.backbone.training


# --------------------------------------------------------------------------------------------------- saving and loading


@pytest.fixture
def saved(model: MultiTaskModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_model_is_the_same_model(model, saved):
    again = MultiTaskModel.from_pretrained(str(saved))
    assert not again.training
    assert {name: tensor.tolist() for name, tensor in heads_of(again).items()} == {
        name: tensor.tolist() for name, tensor in heads_of(model).items()
    }
    pd.testing.assert_frame_equal(again.predict(TEXTS), model.predict(TEXTS))
    assert torch.equal(again.encoder.encode(TEXTS), model.encoder.encode(TEXTS))


@pytest.mark.parametrize(
    "settings", [{}, {"pooling": "weighted", "projection": 8}, {"pooling": "cls", "max_length": 9}]
)
def test_the_encoder_of_a_saved_model_is_a_sentence_transformer(settings: dict, family_dirs, tmp_path):
    encoder = SentenceEncoder.from_pretrained(family_dirs["mpnet"], **settings)
    MultiTaskModel(encoder).save_pretrained(tmp_path)
    expected = torch.as_tensor(SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS))
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=0)
    assert torch.equal(MultiTaskModel.from_pretrained(tmp_path).encoder.encode(TEXTS), encoder.encode(TEXTS))


def test_minilm_with_heads_saved_and_loaded(encoder, tmp_path):
    model = MultiTaskModel(encoder)
    model.save_pretrained(tmp_path)
    pd.testing.assert_frame_equal(MultiTaskModel.from_pretrained(tmp_path).predict(TEXTS), model.predict(TEXTS))


def test_loading_needs_no_network(model, saved, monkeypatch):
    def no_socket(*args, **kwargs):
        raise AssertionError("a socket was opened")

    expected = model.predict(TEXTS)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "socket", no_socket)
    monkeypatch.setattr(socket, "getaddrinfo", no_socket)
    pd.testing.assert_frame_equal(MultiTaskModel.from_pretrained(saved).predict(TEXTS), expected)
    assert SentenceEncoder.from_pretrained().dim == 384


def test_saving_over_a_save_replaces_it_and_spares_other_files(saved, family_dirs):
    (saved / "notes.txt").write_text("mine")
    (saved / "runs").mkdir()
    (saved / "runs" / "log.txt").write_text("mine too")
    other = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["roberta"], projection=8), OWN, head="mlp")
    other.save_pretrained(saved)
    pd.testing.assert_frame_equal(MultiTaskModel.from_pretrained(saved).predict(TEXTS), other.predict(TEXTS))
    assert (saved / "notes.txt").read_text() == "mine"
    assert (saved / "runs" / "log.txt").read_text() == "mine too"


def test_a_save_that_fails_leaves_the_old_one(model, saved, tiny, monkeypatch):
    def disk_full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(multitask, "save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        MultiTaskModel(tiny, OWN).save_pretrained(saved)
    pd.testing.assert_frame_equal(MultiTaskModel.from_pretrained(saved).predict(TEXTS), model.predict(TEXTS))
    assert not [path for path in saved.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_truncated_heads_are_refused(keep: int, saved):
    path = saved / "heads.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"heads\.safetensors: its SHA-256"):
        MultiTaskModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "name", ["tasks.json", "heads.safetensors", "model.safetensors", "config.json", "encoder.json", "tokenizer.json"]
)
def test_a_save_from_which_a_file_is_missing_is_refused(name: str, saved):
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        MultiTaskModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["tasks.json", "encoder.json"])
def test_damaged_descriptions_are_refused_by_name(name: str, saved):
    (saved / name).write_bytes((saved / name).read_bytes()[:-20])
    with pytest.raises(ValueError, match=f"{name}: damaged"):
        MultiTaskModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["heads.safetensors", "model.safetensors"])
def test_files_of_different_saves_do_not_mix(name: str, saved, family_dirs, tmp_path):
    other = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["electra"]))
    other.save_pretrained(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, saved)
    with pytest.raises(ValueError, match=f"{name}: its SHA-256"):
        MultiTaskModel.from_pretrained(saved)


def test_heads_do_not_mix_with_an_encoder_saved_over_them(saved, family_dirs):
    SentenceEncoder.from_pretrained(family_dirs["electra"]).save_pretrained(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors: its SHA-256"):
        MultiTaskModel.from_pretrained(saved)


def test_a_folder_without_a_saved_model(tmp_path, family_dirs):
    with pytest.raises(FileNotFoundError, match=r"none: holds no tasks\.json"):
        MultiTaskModel.from_pretrained(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"holds no tasks\.json, expected a folder written by MultiTaskModel"):
        MultiTaskModel.from_pretrained(family_dirs["bert"])
