"""Freezing: which parts train under which strategy, that frozen means frozen, and cached features."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from peft.tuners.lora import LoraLayer

from mtl_helpers import MultiTaskModel, SentenceEncoder, TrainingConfig, fit
from mtl_helpers.corpus import collate, make_examples
from mtl_helpers.freezing import (
    STRATEGIES,
    cache_states,
    freeze,
    frozen_layers,
    merge_lora,
    parts,
    thaw,
    trainable_summary,
)
from mtl_helpers.training import make_optimizer

CONFIG = TrainingConfig(epochs=2, max_tokens=256, learning_rate=1e-3, precision="float32", patience=None)
OPTIONS = {"one_head": {"task": "topic"}, "lower_layers": {"layers": 2}}
LAYERS = 3  # of the tiny models


@pytest.fixture
def any_model(family_dir) -> MultiTaskModel:
    """The four tasks on a tiny encoder of each family in turn."""
    torch.manual_seed(0)
    return MultiTaskModel(SentenceEncoder.from_pretrained(family_dir)).eval()


@pytest.fixture(scope="module")
def few(corpus: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    short = corpus[corpus.text.str.len() < 60]  # the tiny models have few positions and split words into many pieces
    return short[short.split == "train"][:60], short[short.split == "validation"][:30]


def training_parts(model: MultiTaskModel) -> set[str]:
    return {part for part, members in parts(model).items() if any(p.requires_grad for p in members.values())}


HEADS = {"topic head", "sentence_type head", "sentiment head", "entities head"}
ALL = {"embeddings", "layer 1", "layer 2", "layer 3"} | HEADS
EXPECTED = {
    "nothing": ALL,
    "everything": set(),
    "backbone": HEADS,
    "one_head": ALL - {"topic head"},
    "embeddings": ALL - {"embeddings"},
    "lower_layers": {"layer 3"} | HEADS,
    "gradual_unfreezing": HEADS,
    "layerwise_decay": ALL,
    "probe_then_finetune": HEADS,
    "bias_only": ALL,
    "lora": ALL - {"embeddings"},
}


def test_every_parameter_belongs_to_one_part(any_model):
    names = [name for members in parts(any_model).values() for name in members]
    pooler = [name for name, _ in any_model.named_parameters() if "backbone.pooler" in name]
    assert sorted(names + pooler) == sorted(name for name, _ in any_model.named_parameters())
    assert list(parts(any_model))[: LAYERS + 1] == ["embeddings", "layer 1", "layer 2", "layer 3"]
    sizes = {part: sum(p.numel() for p in members.values()) for part, members in parts(any_model).items()}
    assert sizes["layer 1"] == sizes["layer 3"] > 0 and sizes["embeddings"] > 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_opens_its_parts(any_model, strategy: str):
    freeze(any_model, strategy, **OPTIONS.get(strategy, {}))
    expected = set(EXPECTED[strategy])
    if strategy == "bias_only" and not any("bias" in name for name in parts(any_model)["embeddings"]):
        expected -= {"embeddings"}
    assert training_parts(any_model) == expected


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "everything"])
def test_what_is_frozen_keeps_its_weights_and_gets_no_state(any_model, few, strategy: str):
    freeze(any_model, strategy, **OPTIONS.get(strategy, {}))
    before = {name: tensor.clone() for name, tensor in any_model.state_dict().items()}
    best = fit(any_model, *few, replace(CONFIG, epochs=3)).best_epoch  # its weights are the ones in the model
    moved = {name for name, tensor in any_model.state_dict().items() if not torch.equal(tensor, before[name])}
    summary = trainable_summary(any_model).set_index("part")
    reached = summary[summary.from_epoch.fillna(99) <= best].index
    allowed = {
        name
        for part in reached
        for name, parameter in parts(any_model)[part].items()
        if parameter.requires_grad or part in any_model.thaws
    }
    assert moved and moved <= allowed
    assert {part for part in reached if not moved & set(parts(any_model)[part])} == set()


def test_the_optimizer_knows_only_what_trains_at_some_time(model):
    freeze(model, "lower_layers", layers=2)
    held = {id(p) for group in make_optimizer(model, CONFIG).param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}
    freeze(model, "gradual_unfreezing")
    held = {id(p) for group in make_optimizer(model, CONFIG).param_groups for p in group["params"]}
    assert held == {id(p) for members in parts(model).values() for p in members.values()}


def test_dropout_is_off_in_what_is_frozen(any_model):
    freeze(any_model, "lower_layers", layers=2)
    any_model.train()
    frozen = [m for part in ("layer 1", "layer 2") for m in _modules(any_model, part)]
    assert frozen and not any(module.training for module in frozen)
    assert all(module.training for module in _modules(any_model, "layer 3"))
    freeze(any_model, "one_head", task="sentiment")
    any_model.train()
    assert not any(module.training for module in any_model.heads["sentiment"].modules())
    assert any_model.heads["topic"].training and all(module.training for module in _modules(any_model, "layer 1"))
    freeze(any_model, "backbone")
    any_model.train()
    assert not any(module.training for module in any_model.encoder.backbone.modules())


def _modules(model: MultiTaskModel, part: str) -> list[torch.nn.Module]:
    from mtl_helpers.encoder import layers_of

    return list(layers_of(model.encoder.backbone)[int(part[-1]) - 1].modules())


def test_gradual_unfreezing_goes_down_a_layer_each_epoch(model):
    freeze(model, "gradual_unfreezing")
    opened = []
    for epoch in range(1, 6):
        thaw(model, epoch)
        opened.append(training_parts(model) - HEADS)
    assert opened == [
        set(),
        {"layer 3"},
        {"layer 3", "layer 2"},
        {"layer 3", "layer 2", "layer 1"},
        {"layer 3", "layer 2", "layer 1", "embeddings"},
    ]
    freeze(model, "gradual_unfreezing", layers_per_epoch=2)
    thaw(model, 2)
    assert training_parts(model) - HEADS == {"layer 3", "layer 2"}


def test_probe_then_finetune_opens_everything_at_once(model):
    freeze(model, "probe_then_finetune", epochs=2)
    thaw(model, 2)
    assert training_parts(model) == HEADS
    thaw(model, 3)
    assert training_parts(model) == ALL


def test_layerwise_decay_gives_each_layer_its_rate(model):
    freeze(model, "layerwise_decay", decay=0.5)
    rates = {id(p): group["peak"] for group in make_optimizer(model, CONFIG).param_groups for p in group["params"]}
    found = {part: {rates[id(p)] for p in members.values()} for part, members in parts(model).items()}
    assert found["layer 3"] == {1e-3} and found["layer 2"] == {5e-4} and found["layer 1"] == {2.5e-4}
    assert found["embeddings"] == {1.25e-4} and found["topic head"] == {CONFIG.head_learning_rate}


def test_bias_only_is_a_small_share(model):
    freeze(model, "bias_only")
    trained = [name for name, p in model.encoder.backbone.named_parameters() if p.requires_grad]
    assert trained and all(name.endswith("bias") for name in trained)


def test_lora_starts_as_the_plain_model_and_merges_into_one(any_model, few):
    texts = few[0].text[:8].tolist()
    before = any_model.encoder.encode(texts)
    freeze(any_model, "lora", rank=4)
    assert any(isinstance(module, LoraLayer) for module in any_model.modules())
    assert torch.equal(any_model.encoder.encode(texts), before)
    fit(any_model, *few, CONFIG)
    trained = any_model.encoder.encode(texts)
    assert not torch.allclose(trained, before, atol=1e-3)
    merge_lora(any_model)
    assert not any(isinstance(module, LoraLayer) for module in any_model.modules())
    assert torch.allclose(any_model.encoder.encode(texts), trained, atol=1e-5)


def test_merged_lora_is_saved_and_loaded(any_model, tmp_path):
    freeze(any_model, "lora")
    with pytest.raises(ValueError, match=r"call freezing[.]merge_lora"):
        any_model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    merge_lora(any_model)
    any_model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert torch.equal(again.encoder.encode(["Behold!"]), any_model.encoder.encode(["Behold!"]))


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("half", {}, "strategy is 'half', expected one of nothing, everything, backbone"),
        ("lower_layers", {"layers": 0}, "layers is 0, expected 1 to 3"),
        ("lower_layers", {"layers": 4}, "layers is 4, expected 1 to 3"),
        ("lower_layers", {"layers": True}, "layers is True, expected 1 to 3"),
        ("lower_layers", {}, "missing a required argument: 'layers'; its options: layers"),
        ("backbone", {"layers": 2}, "unexpected keyword argument 'layers'; its options: none"),
        ("one_head", {"task": "mood"}, "task is 'mood', expected one of topic, sentence_type"),
        ("gradual_unfreezing", {"layers_per_epoch": 0}, "layers_per_epoch is 0"),
        ("layerwise_decay", {"decay": 1.5}, "decay is 1.5"),
        ("probe_then_finetune", {"epochs": 0}, "epochs is 0"),
        ("lora", {"rank": 0}, "rank is 0"),
    ],
)
def test_impossible_wishes_are_refused_and_change_nothing(model, strategy: str, options: dict, message: str):
    freeze(model, "embeddings")
    before = training_parts(model)
    with pytest.raises(ValueError, match=message):
        freeze(model, strategy, **options)
    assert training_parts(model) == before


def test_a_second_strategy_replaces_the_first(model):
    freeze(model, "gradual_unfreezing")
    freeze(model, "layerwise_decay")
    assert training_parts(model) == ALL and model.thaws == {}
    freeze(model, "nothing")
    assert training_parts(model) == ALL and model.rates == {}
    freeze(model, "lora")
    with pytest.raises(ValueError, match="merge_lora"):
        freeze(model, "nothing")


def test_training_with_everything_frozen_is_refused_kindly(model, few):
    freeze(model, "everything")
    with pytest.raises(ValueError, match="every parameter is frozen"):
        fit(model, *few, CONFIG)


def test_summary_adds_up(any_model):
    freeze(any_model, "gradual_unfreezing")
    table = trainable_summary(any_model)
    pooler = sum(p.numel() for name, p in any_model.named_parameters() if "backbone.pooler" in name)
    assert table.parameters.sum() + pooler == sum(p.numel() for p in any_model.parameters())
    assert (table.parameters == table.trainable).all()
    assert table.set_index("part").from_epoch[["topic head", "layer 3", "layer 1", "embeddings"]].tolist() == [
        1,
        2,
        4,
        5,
    ]
    freeze(any_model, "everything")
    table = trainable_summary(any_model)
    assert table.trainable.sum() == 0 and table.from_epoch.isna().all()


# -------------------------------------------------------------------------------------- cached features


@pytest.mark.parametrize(
    ("strategy", "options", "frozen"),
    [
        ("backbone", {}, 3),
        ("lower_layers", {"layers": 1}, 1),
        ("lower_layers", {"layers": 3}, 3),
        ("embeddings", {}, 0),
        ("nothing", {}, 0),
        ("one_head", {"task": "topic"}, 0),
        ("gradual_unfreezing", {}, 0),
        ("lora", {}, 0),
    ],
)
def test_frozen_layers(any_model, strategy: str, options: dict, frozen: int):
    freeze(any_model, strategy, **options)
    assert frozen_layers(any_model) == frozen


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_cached_states_give_the_same_logits(any_model, few, layers: int):
    freeze(any_model, "lower_layers", layers=layers)
    examples = make_examples(few[0], any_model.encoder.tokenizer, any_model.tasks, any_model.encoder.max_length)
    pad = any_model.encoder.tokenizer.pad_token_id
    plain = any_model(collate(examples[:7], pad))
    cache_states(any_model, examples)
    batch = collate(examples[:7], pad)
    assert batch["frozen_layers"] == layers and batch["states"].shape == (*batch["input_ids"].shape, 32)
    calls = []
    any_model.encoder.backbone.register_forward_hook(lambda *_: calls.append(1))
    cached = any_model(batch)
    assert len(calls) == (layers < LAYERS)
    valid = batch["attention_mask"].bool()
    for task in any_model.tasks:
        a, b = plain[task.name], cached[task.name]
        a, b = (a[valid], b[valid]) if task.level == "token" else (a, b)
        assert torch.allclose(a, b, atol=1e-5)
    names = [name for name, _ in any_model.named_parameters()]
    any_model(collate(examples[:2], pad))
    assert [name for name, _ in any_model.named_parameters()] == names


@pytest.mark.parametrize("pooling", ["mean", "cls", "last_layers"])
def test_fit_gives_the_same_with_and_without_the_cache(family_dirs, few, pooling: str, monkeypatch):
    results = []
    for cached in (True, False):
        if not cached:
            monkeypatch.setattr("mtl_helpers.training.cache_states", lambda *_: None)
        for options in ({"strategy": "backbone"}, {"strategy": "lower_layers", "layers": 2}):
            torch.manual_seed(0)
            model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"], pooling=pooling, layers=2))
            freeze(model, **options)
            history = fit(model, *few, CONFIG)
            results.append((copy.deepcopy(model.state_dict()), history.to_frame().train_loss.to_numpy()))
    for (weights, losses), (others, more) in zip(results[:2], results[2:], strict=True):
        assert np.allclose(losses, more, atol=1e-4)
        for name, weight in weights.items():
            if not name.endswith("key.bias"):  # softmax ignores it: its gradient is noise, which Adam magnifies
                assert torch.allclose(weight, others[name], atol=1e-3), name


def test_a_run_with_thawing_layers_resumes_to_the_same_weights(family_dirs, few, tmp_path, monkeypatch):
    def run(directory=None):
        torch.manual_seed(0)
        model = MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs["bert"]))
        freeze(model, "gradual_unfreezing")
        fit(model, *few, replace(CONFIG, epochs=4, checkpoint_every=2), directory)
        return model.state_dict()

    whole = run()
    from mtl_helpers import training

    step, calls = training.train_step, []

    def stop(*arguments):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return step(*arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "train_step", stop)
        run(tmp_path)
    again = run(tmp_path)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
