"""Freezing: which parts train under which strategy, that frozen means frozen, and features computed once."""

from dataclasses import replace

import pandas as pd
import pytest
import torch
from exactly import CONFIG, assert_identical, weights
from peft.tuners.lora import LoraLayer
from torch.testing import assert_close

from mtl_helpers import MultiTaskModel, SentenceEncoder, Task, fit, freeze, trainable_summary
from mtl_helpers.backbones import layers_of
from mtl_helpers.features import frozen_layers, hidden_source
from mtl_helpers.freezing import STRATEGIES, merge_lora, parameters_by_part, thaw, trained_parameters
from mtl_helpers.optimization import make_optimizer

pytest_plugins = ["training_fixtures"]

RATES = replace(CONFIG, learning_rate=1e-3, patience=None)
LAYERED = ("embeddings", "lower_layers", "gradual_unfreezing", "layerwise_decay")  # what needs layers
OPTIONS = {"one_head": {"task": "topic"}, "lower_layers": {"layers": 2}}
HEADS = {"topic head", "sentence_type head", "sentiment head", "entities head"}
ALL = {"embeddings", "layer 1", "layer 2", "layer 3", "projection"} | HEADS
EXPECTED = {  # what trains in the first epoch
    "full_training": ALL,
    "no_training": set(),
    "backbone": HEADS | {"projection"},
    "one_head": ALL - {"topic head"},
    "embeddings": ALL - {"embeddings"},
    "lower_layers": {"layer 3", "projection"} | HEADS,
    "gradual_unfreezing": HEADS | {"projection"},
    "layerwise_decay": ALL,
    "probe_then_finetune": HEADS | {"projection"},
    "bias_only": ALL,
    "lora": ALL - {"embeddings"},
}


@pytest.fixture
def any_model(family_dir) -> MultiTaskModel:
    """The four tasks on a tiny encoder of each family in turn, with a projection."""
    torch.manual_seed(0)
    return MultiTaskModel(SentenceEncoder.from_pretrained(family_dir, projection=16)).eval()


def use(model: MultiTaskModel, strategy: str) -> set[str]:
    """Apply a strategy; the parts that train now."""
    freeze(model, strategy, **OPTIONS.get(strategy, {}))
    return training_parts(model)


def training_parts(model: MultiTaskModel) -> set[str]:
    return {part for part, own in parameters_by_part(model).items() if any(p.requires_grad for p in own.values())}


def has_layers(model: MultiTaskModel) -> bool:
    return len(layers_of(model.encoder.backbone)) > 0


# -------------------------------------------------------------------------------------------------- parts, strategies


def test_every_parameter_belongs_to_one_part(any_model):
    members = parameters_by_part(any_model)
    names = [name for own in members.values() for name in own]
    pooler = [name for name, _ in any_model.named_parameters() if "backbone.pooler" in name]
    assert sorted(names + pooler) == sorted(name for name, _ in any_model.named_parameters())
    layers = ["layer 1", "layer 2", "layer 3"] * has_layers(any_model)
    assert list(members) == ["embeddings", *layers, "projection", *(f"{task.name} head" for task in any_model.tasks)]
    sizes = {part: sum(p.numel() for p in own.values()) for part, own in members.items()}
    assert all(sizes.values()) and sizes["projection"] == 32 * 16 + 16 + 2 * 16 and sizes["topic head"] == 17 * 6
    for part, own in members.items():
        assert all(name.startswith("heads.") == part.endswith(" head") for name in own)


def test_each_strategy_opens_its_parts_or_says_what_it_needs(any_model):
    kind, layered = any_model.encoder.backbone.config.model_type, has_layers(any_model)
    without_bias = {part for part, own in parameters_by_part(any_model).items() if not any("bias" in n for n in own)}
    backbone_parts = set(parameters_by_part(any_model)) - EXPECTED["backbone"]
    for strategy, opened in EXPECTED.items():
        without = ("layers",) if strategy in LAYERED and not layered else ()
        without += ("biases",) if strategy == "bias_only" and not backbone_parts - without_bias else ()
        if without:
            use(any_model, "backbone")
            with pytest.raises(ValueError, match=f"^(freezing the )?{strategy} needs {without[0]}.*{kind}"):
                use(any_model, strategy)
            assert training_parts(any_model) == EXPECTED["backbone"]  # as before
            continue
        expected = opened if layered else opened - {"layer 1", "layer 2", "layer 3"}
        if strategy == "lora" and not layered:
            expected = expected | {"embeddings"}  # which here are all of the backbone
        if strategy == "bias_only":
            expected = expected - without_bias
        assert use(any_model, strategy) == expected, strategy
        assert not any(p.requires_grad for name, p in any_model.named_parameters() if "backbone.pooler" in name)
    assert list(EXPECTED) == list(STRATEGIES)


def test_strategies_in_words(model):
    assert use(model, "bias_only")
    names = [name for name, p in model.encoder.backbone.named_parameters() if p.requires_grad]
    assert names and all(name.endswith("bias") for name in names)
    freeze(model, "layerwise_decay", decay=0.5)
    peaks = {id(p): group["peak"] for group in make_optimizer(model, RATES).param_groups for p in group["params"]}
    rates = {part: {peaks[id(p)] for p in own.values()} for part, own in parameters_by_part(model).items()}
    names = ("layer 3", "layer 2", "layer 1", "embeddings")
    assert [rates[part] for part in names] == [{1e-3}, {5e-4}, {2.5e-4}, {1.25e-4}]
    assert rates["topic head"] == {RATES.head_learning_rate}
    freeze(model, "gradual_unfreezing")
    opened = [set(), {"layer 3"}, {"layer 2"}, {"layer 1"}, {"embeddings"}]
    for epoch in range(1, 6):
        thaw(model, epoch)
        assert training_parts(model) == HEADS.union(*opened[:epoch])
    freeze(model, "gradual_unfreezing", layers_per_epoch=2)
    thaw(model, 2)
    assert training_parts(model) - HEADS == {"layer 3", "layer 2"}
    freeze(model, "probe_then_finetune", epochs=2)
    thaw(model, 2)
    assert training_parts(model) == HEADS
    thaw(model, 3)
    assert training_parts(model) == ALL - {"projection"}


def test_the_optimizer_knows_only_what_trains_at_some_time(model):
    def held() -> set[int]:
        return {id(p) for group in make_optimizer(model, RATES).param_groups for p in group["params"]}

    use(model, "lower_layers")
    assert held() == {id(p) for p in model.parameters() if p.requires_grad}
    use(model, "gradual_unfreezing")
    assert held() == {id(p) for own in parameters_by_part(model).values() for p in own.values()}
    assert len(list(trained_parameters(model))) == len(held())


@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("half", {}, "strategy is 'half', expected one of full_training, no_training, backbone"),
        ("nothing", {}, "strategy is 'nothing', expected one of"),
        ("lower_layers", {"layers": 0}, "layers is 0, expected 1 to 3"),
        ("lower_layers", {"layers": 4}, "layers is 4, expected 1 to 3"),
        ("lower_layers", {"layers": True}, "layers is True, expected 1 to 3"),
        ("lower_layers", {}, "missing a required argument: 'layers'; its options: layers"),
        ("backbone", {"layers": 2}, "unexpected keyword argument 'layers'; its options: none"),
        ("one_head", {"task": "mood"}, "task is 'mood', expected one of topic, sentence_type"),
        ("gradual_unfreezing", {"layers_per_epoch": 0}, "layers_per_epoch is 0"),
        ("layerwise_decay", {"decay": 1.5}, "decay is 1.5"),
        ("layerwise_decay", {"decay": 0}, "decay is 0"),
        ("probe_then_finetune", {"epochs": 0}, "epochs is 0"),
        ("lora", {"rank": 0}, "rank is 0"),
    ],
)
def test_impossible_wishes_are_refused_and_change_nothing(model, strategy: str, options: dict, message: str):
    freeze(model, "gradual_unfreezing")
    model.rates = {"layer 1": 0.5}
    before = [p.requires_grad for p in model.parameters()], model.thaws, model.rates
    with pytest.raises(ValueError, match=message):
        freeze(model, strategy, **options)
    assert ([p.requires_grad for p in model.parameters()], model.thaws, model.rates) == before


def test_the_smallest_and_largest_values_are_allowed(model):
    for strategy, options in (
        *(("lower_layers", {"layers": 3}), ("gradual_unfreezing", {"layers_per_epoch": 1})),
        *(("layerwise_decay", {"decay": 1}), ("probe_then_finetune", {"epochs": 1}), ("lora", {"rank": 1})),
    ):
        freeze(model, strategy, **options)
    assert {module.r["default"] for module in model.modules() if isinstance(module, LoraLayer)} == {1}


def test_a_second_strategy_replaces_the_first(model):
    for first, second in (("gradual_unfreezing", "layerwise_decay"), ("no_training", "full_training")):
        use(model, first)
        assert use(model, second) == ALL - {"projection"} and model.thaws == {}
    assert model.rates == {}
    use(model, "lora")
    with pytest.raises(ValueError, match="the model has LoRA adapters, expected none; call merge_lora first"):
        use(model, "full_training")


def test_summary_adds_up(any_model):
    total = sum(p.numel() for name, p in any_model.named_parameters() if "backbone.pooler" not in name)
    table = trainable_summary(any_model)
    assert table.parameters.sum() == table.trainable.sum() == total and set(table.from_epoch) == {1}
    use(any_model, "no_training")
    table = trainable_summary(any_model)
    assert table.trainable.sum() == 0 and table.from_epoch.isna().all()
    if has_layers(any_model):
        use(any_model, "gradual_unfreezing")
        table = trainable_summary(any_model).set_index("part")
        assert (table.parameters == table.trainable).all()
        assert table.from_epoch[["topic head", "layer 3", "layer 1", "embeddings"]].tolist() == [1, 2, 4, 5]
        freeze(any_model, "layerwise_decay", decay=0.5)
        assert trainable_summary(any_model).set_index("part").rate[["layer 3", "embeddings"]].tolist() == [1, 0.125]


@pytest.mark.parametrize("name", ["pooler", "backbone", "projection", "layer", "embeddings"])
def test_a_task_may_be_called_like_a_part_of_the_backbone(name: str, tiny, partly, validation):
    model = MultiTaskModel(tiny, [Task(name, ("negative", "neutral", "positive"))])
    assert set(parameters_by_part(model)[f"{name} head"]) == {f"heads.{name}.1.weight", f"heads.{name}.1.bias"}
    freeze(model, "backbone")
    assert training_parts(model) == {f"{name} head"}
    before = weights(model)
    fit(model, partly.rename(columns={"sentiment": name}), validation.rename(columns={"sentiment": name}), RATES)
    moved = {key for key, tensor in weights(model).items() if not torch.equal(tensor, before[key])}
    assert moved == set(parameters_by_part(model)[f"{name} head"])


# ------------------------------------------------------------------------------------------------ frozen means frozen


def check_what_moves(model: MultiTaskModel, strategy: str, train: pd.DataFrame, validation: pd.DataFrame) -> None:
    use(model, strategy)
    before = weights(model)
    best = fit(model, train, validation, RATES).best_epoch  # its weights are the ones in the model
    moved = {name for name, tensor in weights(model).items() if not torch.equal(tensor, before[name])}
    summary = trainable_summary(model).set_index("part")
    members = parameters_by_part(model)
    reached = summary[summary.from_epoch.fillna(99) <= best].index
    allowed = {name for part in reached for name, p in members[part].items() if p.requires_grad or part in model.thaws}
    assert moved and moved <= allowed
    assert {part for part in reached if not moved & set(members[part])} == set()


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "no_training"])
def test_what_is_frozen_keeps_its_weights(model, partly, validation, strategy: str):
    check_what_moves(model, strategy, partly, validation)


def test_any_family_trains(any_model, partly, validation):
    for strategy in ("full_training", "backbone", "lora"):
        check_what_moves(any_model, strategy, partly, validation)


def test_dropout_is_off_in_what_is_frozen(model):
    layers = layers_of(model.encoder.backbone)
    model.train()
    use(model, "lower_layers")  # takes effect at once, and at each call of train()
    for _ in range(2):
        assert not any(module.training for layer in layers[:2] for module in layer.modules())
        assert all(module.training for module in layers[2].modules())
        model.train()
    use(model, "one_head")
    assert not any(module.training for module in model.heads["topic"].modules())
    assert model.heads["sentiment"].training and all(module.training for module in layers[0].modules())
    use(model, "backbone")
    assert not any(module.training for module in model.encoder.backbone.modules()) and model.heads["topic"].training
    model.eval()
    use(model, "full_training")
    assert not any(module.training for module in model.modules())


def test_lora_starts_as_the_plain_model_and_merges_into_one(any_model, partly, validation, tmp_path):
    texts = partly["text"].tolist()
    before, classes = any_model.encoder.encode(texts), [type(module) for module in any_model.modules()]
    freeze(any_model, "lora", rank=4)
    adapters = [module for module in any_model.modules() if isinstance(module, LoraLayer)]
    assert adapters and {a.r["default"] for a in adapters} == {4}
    assert {a.scaling["default"] for a in adapters} == {2.0}
    assert torch.equal(any_model.encoder.encode(texts), before)
    fit(any_model, partly, validation, RATES)
    trained = any_model.encoder.encode(texts)
    assert not torch.allclose(trained, before, atol=1e-3)
    with pytest.raises(ValueError, match=r"call freezing[.]merge_lora"):
        any_model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    merge_lora(any_model)
    assert [type(module) for module in any_model.modules()] == classes
    assert_close(any_model.encoder.encode(texts), trained, atol=1e-4, rtol=0)
    any_model.save_pretrained(tmp_path)
    again = MultiTaskModel.from_pretrained(tmp_path)
    assert torch.equal(again.encoder.encode(texts), any_model.encoder.encode(texts))


def test_a_compiled_model_is_frozen_and_trained_like_its_original(build, partly, validation, one_thread):
    plain, original = build(), build()
    compiled = torch.compile(original, backend="eager")
    for model in (plain, compiled):
        freeze(model, "embeddings")
        fit(model, partly, validation, replace(RATES, epochs=1))
    assert training_parts(original) == training_parts(plain) == ALL - {"embeddings", "projection"}
    pd.testing.assert_frame_equal(trainable_summary(compiled), trainable_summary(plain))
    assert_identical(weights(original), weights(plain))


# ------------------------------------------------------------------------------------------- features computed once


FROZEN = {"backbone": 3, "no_training": 3, "lower_layers": 2}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_frozen_layers(model, strategy: str):
    use(model, strategy)
    assert frozen_layers(model) == FROZEN.get(strategy, 0)
    model.encoder.pooling, model.encoder.layers = "last_layers", 3  # reads layers 1, 2 and 3
    assert frozen_layers(model) == min(1, FROZEN.get(strategy, 0))


def test_states_from_memory_give_the_same_logits(any_model, full):
    rows, examples = [3, 0, 5, 1], any_model.examples(full)
    batch = any_model.batch([examples[i] for i in rows])
    valid = batch["attention_mask"].bool()
    for layers in (1, 2, 3):
        if has_layers(any_model):
            freeze(any_model, "lower_layers", layers=layers)
        else:
            use(any_model, "backbone")
        states = hidden_source(any_model, examples)(rows, batch)
        expected = hidden_source(any_model, examples, cache=False)(rows, batch)
        assert (len(states), len(expected)) == (4 - layers if has_layers(any_model) else 4, 4)
        assert states[0].shape == (*batch["input_ids"].shape, 32)
        logits = [any_model.answer(side, batch) for side in (states, expected)]
        for task in any_model.tasks:
            a, b = (side[task.name][valid] if task.level == "token" else side[task.name] for side in logits)
            assert_close(a, b, atol=1e-5, rtol=1e-4)
