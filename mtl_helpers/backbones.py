"""Any encoder: found and loaded; then what differs from one architecture to the next, layers, longest text, a pass.

Nothing here goes by an architecture's name: a short trial shows how a backbone behaves. A pass notes what comes into
each layer, so that hidden states need no hooks (a model with those of transformers can't be pickled), and may start
at any layer. Shapes: B texts, T tokens, H width, L layers.
"""

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .folders import quiet, read_json
from .minilm import MINILM, find_minilm
from .runtime import inference


def layers_of(backbone: PreTrainedModel, needed_by: str = "") -> nn.ModuleList:
    """The transformer layers of a backbone, from the bottom up, whatever its family calls them.

    Empty where there is no module for each layer, as in ALBERT, whose layers share one set of weights.

    Raises:
        ValueError: no such modules, but `needed_by` (named in the message) can't do without.
    """
    depth = backbone.config.num_hidden_layers
    lists = (module for module in backbone.modules() if isinstance(module, nn.ModuleList))
    layers = next((modules for modules in lists if len(modules) == depth), nn.ModuleList())
    if needed_by and not layers:
        kind, remedy = backbone.config.model_type, "freeze or train it as a whole, or choose another backbone"
        raise ValueError(f"{needed_by} needs layers, but this backbone ({kind}) has no module for each; {remedy}")
    return layers


def longest_input(backbone: PreTrainedModel) -> int:
    """Tokens that a backbone has positions for; 512 if it names no limit.

    RoBERTa and MPNet start behind the position of the padding, so that two of theirs are never used.
    """
    limit = getattr(backbone.config, "max_position_embeddings", None) or 0
    limit = limit if limit > 0 else 512
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            return min(limit, module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1))
    return limit  # rotary or relative positions


@dataclass(frozen=True)
class Traits:
    """What a trial shows of a backbone.

    Args:
        depth: L, the hidden states above the embeddings.
        traced: what comes into the layers are the hidden states; if not, they are left to transformers.
        values: how many values a layer returns, 0 for a bare tensor; None: a pass can't start at a layer.
    """

    depth: int
    traced: bool
    values: int | None


def try_out(backbone: PreTrainedModel) -> Traits:
    """Run a few tokens, from the start and from a layer, and compare.

    Raises:
        ValueError: the backbone is no encoder that runs on token ids and a mask alone.
    """
    kind, depth = backbone.config.model_type, getattr(backbone.config, "num_hidden_layers", 0)
    if getattr(backbone.config, "is_encoder_decoder", False) or not depth:
        raise ValueError(f"{kind}: not a single stack of transformer layers, expected an encoder such as bert")
    length = min(12, longest_input(backbone))
    ids = torch.arange(2 * length, device=backbone.device).view(2, length) % backbone.config.vocab_size
    mask = torch.ones_like(ids)
    mask[1, length // 2 :] = 0
    trial = _Pass()
    with inference(backbone):
        try:
            states = _run(backbone, ids, mask, trial)
        except Exception:  # an architecture may do anything with its layers
            states = ()
        if len(states) != depth + 1 or len({state.shape for state in states}) > 1:
            try:
                states = hidden_states(backbone, Traits(depth, False, None), ids, mask)
            except Exception as error:
                raise ValueError(f"{kind}: doesn't run as an encoder of token ids and a mask ({error})") from error
            return Traits(len(states) - 1, False, None)
        start = depth // 2
        try:
            again = _run(backbone, ids, mask, _Pass(states[start], start, trial.values))[start:]
            torch.testing.assert_close(again, states[start:], rtol=1e-3, atol=1e-3, equal_nan=True)
        except Exception:
            return Traits(depth, True, None)
    return Traits(depth, True, trial.values)


def hidden_states(
    backbone: PreTrainedModel,
    traits: Traits,
    ids: Tensor,
    mask: Tensor,
    states: Tensor | None = None,
    depth: int = 0,
) -> tuple[Tensor, ...]:
    """Hidden states from layer `depth` upwards, each (B, T, H); `states`, if given, are those of layer `depth`.

    Raises ValueError for a start that this architecture doesn't allow.
    """
    if not 0 <= depth <= traits.depth or (depth and states is None):
        raise ValueError(f"depth is {depth} for a backbone of {traits.depth} layers, expected a layer and its states")
    if states is not None and depth == traits.depth:
        return (states,)
    if not traits.traced and states is None:
        return backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True).hidden_states
    if states is not None and traits.values is None:
        kind = backbone.config.model_type
        raise ValueError(f"a pass through {kind} can't start at layer {depth}; compute it from the token ids")
    return _run(backbone, ids, mask, _Pass(states, depth, traits.values or 0))[depth:]


@dataclass
class _Pass:
    """One pass through the layers: where it starts, and what has come into each of them."""

    start: Tensor | None = None
    depth: int = 0
    values: int = 0
    inputs: list[Tensor] = field(default_factory=list)


class _StandIn:
    """Takes a layer's place during one pass. Below the start it computes nothing, at the start it takes the states."""

    def __init__(self, layer: nn.Module, current: _Pass) -> None:
        self.layer, self.current = layer, current

    def __getattr__(self, name: str) -> object:
        return getattr(self.layer, name)  # a loop over the layers may ask for their kind of attention

    def __call__(self, states: Tensor, *args: object, **kwargs: object) -> object:
        current, index = self.current, len(self.current.inputs)  # not the layer's place: a shared one comes repeatedly
        if current.start is not None and index == current.depth:
            states = current.start
        current.inputs.append(states)
        if index < current.depth:
            return (states, *[None] * (current.values - 1)) if current.values else states
        output = self.layer(states, *args, **kwargs)
        current.values = len(output) if isinstance(output, tuple) else 0
        return output


def _run(backbone: PreTrainedModel, ids: Tensor, mask: Tensor, current: _Pass) -> tuple[Tensor, ...]:
    """Run a copy of the backbone that shares all its modules and weights but has stand-ins for its layers.

    The backbone itself isn't touched, so that several threads may use it at once.
    """
    layers = layers_of(backbone) or next(m for m in backbone.modules() if isinstance(m, nn.ModuleList))
    path, _, name = next(name for name, module in backbone.named_modules() if module is layers).rpartition(".")
    replacement: object = [_StandIn(layer, current) for layer in layers]
    while name:
        owner = copy.copy(backbone.get_submodule(path))
        owner._modules = {key: module for key, module in owner._modules.items() if key != name}
        owner.__dict__[name] = replacement
        replacement, (path, _, name) = owner, path.rpartition(".")
    output = replacement(input_ids=ids, attention_mask=mask, output_hidden_states=False, return_dict=True)
    return (*current.inputs, output.last_hidden_state)


def find_model(name_or_path: str | Path | None) -> Path:
    """Directory of a model: the bundled MiniLM, a local directory, or a snapshot from the hub."""
    if name_or_path is None or (str(name_or_path) in (MINILM, Path(MINILM).name) and not Path(name_or_path).exists()):
        return find_minilm()
    directory = Path(name_or_path).expanduser()
    if directory.is_dir():
        return directory
    try:
        patterns = ["*.json", "*.txt", "*.model", "model*.safetensors", "*/model.safetensors"]
        return Path(snapshot_download(str(name_or_path), allow_patterns=patterns))
    except Exception as error:
        what = "neither a directory here nor a model that the hub would give"
        raise FileNotFoundError(
            f"{name_or_path}: {what} ({type(error).__name__}); pass a directory, or None for MiniLM"
        ) from error


def load_model(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Backbone in float32 and tokenizer; one clear error for each way in which a folder is incomplete or damaged."""
    needed = {"config.json": ["config.json"], "tokenizer.json": ["tokenizer.json", "vocab.*", "*.model"]}
    needed["model.safetensors"] = ["model.safetensors", "model.safetensors.index.json"]
    for name, patterns in needed.items():
        if not any(path for pattern in patterns for path in folder.glob(pattern)):
            raise FileNotFoundError(f"{folder}: holds no {name}, expected a complete model directory")
    for path in folder.glob("*.json"):
        read_json(path, object)  # damaged ones are named here
    options = {"local_files_only": True, "trust_remote_code": False}
    with quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            backbone, info = AutoModel.from_pretrained(
                folder, output_loading_info=True, use_safetensors=True, dtype=torch.float32, **options
            )
        except (SafetensorError, RuntimeError) as error:
            what = "truncated, damaged, or of other shapes than config.json says; fetch or save the model again"
            raise ValueError(f"{folder / 'model.safetensors'}: {what}") from error
        except Exception as error:
            raise ValueError(f"{folder}: can't be loaded by transformers ({error})") from error
    depth = getattr(backbone.config, "num_hidden_layers", 0)
    for key in info["unexpected_keys"]:  # heads of the pretraining are left out, layers never
        number = re.search(r"\blayers?\.(\d+)\.", key)
        if number and int(number[1]) >= depth:
            raise ValueError(f"{folder / 'config.json'}: says {depth} layers, but the weights have {key}; put it right")
    if not all(parameter.isfinite().all() for parameter in backbone.parameters()):
        raise ValueError(f"{folder / 'model.safetensors'}: holds weights that are no finite numbers; fetch it again")
    missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
    if missing:
        kind = backbone.config.model_type
        raise ValueError(
            f"{folder}: no weights for {missing[0]} and {len(missing) - 1} more; expected a {kind} encoder"
        )
    return backbone, tokenizer
