"""What trains and what stays frozen: named strategies over one mechanism.

A model has parts, from the bottom up: the embeddings, layers 1 to L, a projection if there is one, and one head per
task. A strategy says of each part from which epoch on it trains, if at all, and at what share of the learning rate.
Frozen means frozen: no gradient, no optimizer state, no dropout, the same weights afterwards to the bit.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence

import pandas as pd
from torch import nn

from .backbones import layers_of
from .multitask import MultiTaskModel


def parameters_by_part(model: MultiTaskModel) -> dict[str, dict[str, nn.Parameter]]:
    """Parameters by part and name: embeddings, layer 1 ... layer L, projection, TASK head, in this order.

    What lies outside the layers of the backbone (token and position embeddings, their norm, attention biases that
    all layers share) counts as embeddings; so does all of a backbone whose layers can't be told apart (ALBERT). The
    backbone's pooler is left out: nothing reads it.
    """
    layers = layers_of(model.encoder.backbone)
    layer_of = {id(p): f"layer {i}" for i, layer in enumerate(layers, start=1) for p in layer.parameters()}
    order = ["embeddings", *(f"layer {i}" for i in range(1, len(layers) + 1)), "projection"]
    members: dict[str, dict] = {part: {} for part in [*order, *(f"{task.name} head" for task in model.tasks)]}
    for name, parameter in model.named_parameters():
        kind, owner, *_ = name.split(".")
        if not name.replace("_orig_mod.", "").startswith("encoder.backbone.pooler."):
            other = f"{owner} head" if kind == "heads" else "projection" if owner == "projection" else "embeddings"
            members[layer_of.get(id(parameter), other)][name] = parameter
    return {part: own for part, own in members.items() if own}


# ---------------------------------------------------------------------------------------------- strategies


def full_training(model: MultiTaskModel) -> None:
    """Everything trains (full fine-tuning). The most capacity, the most memory; with few labels the most to spoil."""


def no_training(model: MultiTaskModel) -> None:
    """Nothing trains. The model as it is: a baseline, or a model that is only used."""
    model.requires_grad_(False)


def backbone(model: MultiTaskModel) -> None:
    """Only the heads (and the projection) train: linear probing, on features that can be computed once.

    Alain and Bengio 2016, https://arxiv.org/abs/1610.01644.
    """
    model.encoder.backbone.requires_grad_(False)


def one_head(model: MultiTaskModel, task: str) -> None:
    """The head of `task` stays as it is, everything else trains, the encoder under it too."""
    if task not in model.heads:
        raise ValueError(f"task is {task!r}, expected one of {', '.join(t.name for t in model.tasks)}")
    model.heads[task].requires_grad_(False)


def embeddings(model: MultiTaskModel) -> None:
    """The embeddings are frozen: half of MiniLM's parameters, of which each batch would move a few rows."""
    layers_of(model.encoder.backbone, needed_by="freezing the embeddings")
    _freeze(model, ["embeddings"])


def lower_layers(model: MultiTaskModel, layers: int) -> None:
    """The embeddings and the first `layers` layers are frozen; what they compute can be computed once.

    Lee, Tang and Lin 2019, "What would Elsa do?", https://arxiv.org/abs/1911.03090.
    """
    depth = len(layers_of(model.encoder.backbone, needed_by="lower_layers"))
    if type(layers) is not int or not 1 <= layers <= depth:
        raise ValueError(f"layers is {layers!r}, expected 1 to {depth}, the layers of this backbone")
    _freeze(model, ["embeddings", *(f"layer {i}" for i in range(1, layers + 1))])


def gradual_unfreezing(model: MultiTaskModel, layers_per_epoch: int = 1) -> None:
    """First the heads alone, then in each epoch one more layer (or several), from the top down.

    Howard and Ruder 2018, "Universal language model fine-tuning", section 3.3, https://arxiv.org/abs/1801.06146.
    """
    if type(layers_per_epoch) is not int or layers_per_epoch < 1:
        raise ValueError(f"layers_per_epoch is {layers_per_epoch!r}, expected a whole number of at least 1")
    depth = len(layers_of(model.encoder.backbone, needed_by="gradual_unfreezing"))
    downwards = [*(f"layer {i}" for i in range(depth, 0, -1)), "embeddings"]
    model.thaws = {part: 2 + i // layers_per_epoch for i, part in enumerate(downwards)}


def layerwise_decay(model: MultiTaskModel, decay: float = 0.8) -> None:
    """Everything trains, each layer at `decay` times the rate of the one above it: general features move less.

    "Discriminative fine-tuning" of Howard and Ruder 2018, section 3.2, https://arxiv.org/abs/1801.06146.
    """
    if not 0 < decay <= 1:
        raise ValueError(f"decay is {decay!r}, expected a number above 0 and at most 1")
    depth = len(layers_of(model.encoder.backbone, needed_by="layerwise_decay"))
    upwards = ["embeddings", *(f"layer {i}" for i in range(1, depth + 1))]
    model.rates = {part: decay ** (depth - i) for i, part in enumerate(upwards)}


def probe_then_finetune(model: MultiTaskModel, epochs: int = 2) -> None:
    """The heads alone for `epochs` epochs, then everything: random heads can't distort the features any more.

    Kumar et al. 2022, "Fine-tuning can distort pretrained features", https://arxiv.org/abs/2202.10054.
    """
    if type(epochs) is not int or epochs < 1:
        raise ValueError(f"epochs is {epochs!r}, expected a whole number of at least 1")
    model.thaws = {
        part: epochs + 1 for part in parameters_by_part(model) if part == "embeddings" or part.startswith("layer ")
    }


def bias_only(model: MultiTaskModel) -> None:
    """In the backbone only the biases train: a thousandth of its parameters.

    Ben Zaken, Ravfogel and Goldberg 2022, "BitFit", https://arxiv.org/abs/2106.10199.
    """
    own = [(name, p) for name, p in model.encoder.backbone.named_parameters() if not name.startswith("pooler.")]
    if not any(name.endswith("bias") for name, _ in own):
        kind = model.encoder.backbone.config.model_type
        raise ValueError(f"bias_only needs biases, but this backbone ({kind}) has none; choose lora, or backbone")
    for name, parameter in own:
        parameter.requires_grad_(name.endswith("bias"))


def lora(model: MultiTaskModel, rank: int = 8) -> None:
    """The backbone is frozen; every linear map W in its layers becomes W + 2BA with B and A of a small rank.

    Hu et al. 2021, https://arxiv.org/abs/2106.09685, by the peft library. `merge_lora` adds 2BA to W for good.
    """
    if type(rank) is not int or rank < 1:
        raise ValueError(f"rank is {rank!r}, expected a whole number of at least 1")
    from peft import LoraConfig, inject_adapter_in_model  # here, since nothing else needs it

    layers = layers_of(model.encoder.backbone) or model.encoder.backbone
    linear = {id(m) for m in layers.modules() if isinstance(m, nn.Linear)}
    named = model.encoder.backbone.named_modules()
    targets = [name for name, module in named if id(module) in linear and not name.startswith("pooler")]
    model.encoder.backbone.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    inject_adapter_in_model(config, model.encoder.backbone)


STRATEGIES: dict[str, Callable] = {
    strategy.__name__: strategy
    for strategy in (
        *(full_training, no_training, backbone, one_head, embeddings, lower_layers, gradual_unfreezing),
        *(layerwise_decay, probe_then_finetune, bias_only, lora),
    )
}


def freeze(model: MultiTaskModel, strategy: str, **options: object) -> None:
    """Choose what trains, in place; a strategy chosen before is forgotten.

    Args:
        model: any MultiTaskModel.
        strategy: one of STRATEGIES. The name says what is frozen, or how it is done.
        options: of the strategy, for instance layers=3 for "lower_layers". See their docstrings.

    Raises:
        ValueError: a strategy or an option that does not exist, a value that is impossible.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    model = unwrapped(model)
    apply = STRATEGIES[strategy]
    known = list(inspect.signature(apply).parameters)[1:]
    try:
        inspect.signature(apply).bind(model, **options)
    except TypeError as error:
        raise ValueError(f"{strategy}: {error}; its options: {', '.join(known) or 'none'}") from None
    if _adapters(model):
        raise ValueError("the model has LoRA adapters, expected none; call merge_lora first, or load the model anew")
    before = [parameter.requires_grad for parameter in model.parameters()], model.thaws, model.rates
    for members in parameters_by_part(model).values():
        for parameter in members.values():
            parameter.requires_grad_(True)
    model.thaws, model.rates = {}, {}
    try:
        apply(model, **options)
    except Exception:  # peft has errors of its own
        for parameter, flag in zip(model.parameters(), before[0], strict=True):
            parameter.requires_grad_(flag)
        model.thaws, model.rates = before[1:]
        raise
    thaw(model, epoch=1)
    model.train(model.training)  # dropout off in what is frozen


def thaw(model: MultiTaskModel, epoch: int) -> None:
    """Set the parts that a strategy opens later as they should be in `epoch` (1, 2, ...)."""
    members = parameters_by_part(model) if model.thaws else {}
    for part, first in model.thaws.items():
        for parameter in members[part].values():
            parameter.requires_grad_(epoch >= first)


def merge_lora(model: MultiTaskModel) -> None:
    """Add LoRA's BA to the weights it belongs to and take the adapters out: the same outputs, the plain model."""
    for owner, name, adapter in _adapters(model):
        adapter.merge()
        setattr(owner, name, adapter.get_base_layer())


def _adapters(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """LoRA's layers, each with the module that holds it and its name there."""
    children = [(owner, name, child) for owner in model.modules() for name, child in owner.named_children()]
    return [(owner, name, child) for owner, name, child in children if hasattr(child, "get_base_layer")]


def unwrapped(model: MultiTaskModel) -> MultiTaskModel:
    """The model inside of what torch.compile returns, which puts a word of its own before all names."""
    return getattr(model, "_orig_mod", model)


def trained_parameters(model: MultiTaskModel) -> Iterator[tuple[str, nn.Parameter, float]]:
    """Name, parameter and share of the learning rate of all that train, now or in a later epoch."""
    for part, members in parameters_by_part(model).items():
        for name, parameter in members.items():
            if parameter.requires_grad or part in model.thaws:
                yield name, parameter, model.rates.get(part, 1.0)


def trainable_summary(model: MultiTaskModel) -> pd.DataFrame:
    """What trains, part by part.

    Returns:
        One row per part: part, parameters, trainable (how many of them train), from_epoch (the first epoch in which
        they do; missing: never), rate (share of the learning rate).
    """
    model = unwrapped(model)
    trained = {id(parameter) for _, parameter, _ in trained_parameters(model)}
    rows = []
    for part, members in parameters_by_part(model).items():
        trainable = sum(p.numel() for p in members.values() if id(p) in trained)
        first = model.thaws.get(part, 1) if trainable else None
        total = sum(p.numel() for p in members.values())
        rows.append((part, total, trainable, first, model.rates.get(part, 1.0)))
    table = pd.DataFrame(rows, columns=["part", "parameters", "trainable", "from_epoch", "rate"])
    return table.astype({"from_epoch": "Int64"})


def _freeze(model: MultiTaskModel, names: Sequence[str]) -> None:
    members = parameters_by_part(model)
    for name in names:
        for parameter in members[name].values():
            parameter.requires_grad_(False)
