"""What frozen layers compute, computed once."""

from collections.abc import Callable, Sequence

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from .backbones import layers_of
from .batches import length_batches
from .freezing import parameters_by_part, trained_parameters
from .multitask import MultiTaskModel
from .runtime import inference


def frozen_layers(model: MultiTaskModel) -> int:
    """How many layers, from the bottom, stay frozen in every epoch, the embeddings with them; 0: nothing to cache.

    A pooling over several layers needs them all, so of them only the lowest can be frozen in this sense.
    """
    trained = {name for name, _, _ in trained_parameters(model)}
    members, encoder = parameters_by_part(model), model.encoder
    depth = len(layers_of(encoder.backbone))
    if not depth or trained & set(members["embeddings"]):
        return 0
    frozen = next((i for i in range(depth) if trained & set(members[f"layer {i + 1}"])), depth)
    if frozen < depth and encoder.traits.values is None:  # a pass can't start at a layer of this architecture
        return 0
    return min(frozen, depth + 1 - encoder.layers) if encoder.pooling == "last_layers" else frozen


def hidden_source(
    model: MultiTaskModel, examples: Sequence[dict], precision: str = "float32", cache: bool = True
) -> Callable[[Sequence[int], dict], tuple[Tensor, ...]]:
    """A function of positions and their batch that gives the batch's hidden states.

    Where lower layers stay frozen all the time, their output is computed here, once, and kept in memory (4 bytes a
    number, T x H numbers a text): a frozen part in eval mode is a function of its input.

    Args:
        examples: what positions refer to.
        cache: False computes everything each time.
    """
    depth = frozen_layers(model) if cache else 0
    if depth == 0:
        return lambda rows, batch: model.encoder.hidden(batch)
    kept: list[Tensor | None] = [None] * len(examples)
    with inference(model, precision):
        for rows in length_batches([len(example["input_ids"]) for example in examples]):
            states = model.encoder.hidden(model.batch([examples[i] for i in rows]))[depth]
            for i, state in zip(rows, states.float().cpu(), strict=True):
                kept[i] = state[: len(examples[i]["input_ids"])].clone()
    device = model.encoder.backbone.device

    def from_memory(rows: Sequence[int], batch: dict) -> tuple[Tensor, ...]:
        return model.encoder.hidden(batch, pad_sequence([kept[i] for i in rows], True).to(device), depth)

    return from_memory
