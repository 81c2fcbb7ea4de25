"""Sentence encoders: any Hugging Face encoder, pooled to one vector per text.

Pooling after Reimers and Gurevych 2019, "Sentence-BERT" (https://arxiv.org/abs/1908.10084); the position-weighted
mean is that of Muennighoff 2022, "SGPT" (https://arxiv.org/abs/2202.08904).
Shapes: B texts, T tokens, H width of the backbone, D width of a sentence vector.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .backbones import find_model, hidden_states, load_model, longest_input, try_out
from .batches import collate, length_batches, tokenize
from .folders import SETTINGS, check_sha256, hashes, quiet, read_json, replacing, write_json
from .minilm import MINILM, SHA256
from .modules_json import read_modules, write_modules
from .progress import progress
from .runtime import inference

POOLINGS = ("mean", "cls", "max", "weighted", "last_layers")


def pool(states: Sequence[Tensor], mask: Tensor, how: str = "mean", layers: int = 4) -> Tensor:
    """Reduce token vectors to one vector per text, without the padding.

    Args:
        states: hidden states, each (B, T, H); the last is pooled, `last_layers` first averages the last `layers`.
        mask: (B, T), 1 for tokens and 0 for padding.
        how: mean | cls (the first token) | max (per dimension) | weighted (mean with weights 1, 2, 3, ... by
            position) | last_layers (mean over tokens and over the last `layers` hidden states).

    Returns:
        (B, H); means of half-precision states are float32.
    """
    if how not in POOLINGS:
        raise ValueError(f"pooling is {how!r}, expected one of {', '.join(POOLINGS)}")
    if how == "last_layers" and len(states) < layers:
        raise ValueError(f"the pooling last_layers needs {layers} hidden states, found {len(states)}")
    hidden = torch.stack(tuple(states[-layers:])).mean(0) if how == "last_layers" else states[-1]
    if how == "cls":
        first = mask.argmax(dim=1)  # not 0 where padding stands on the left
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), first]
    if how == "max":
        return hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(dim=1)
    hidden = hidden.float() if hidden.itemsize < 4 else hidden
    weights = mask.to(hidden.dtype)
    if how == "weighted":
        weights = weights * weights.cumsum(dim=1)
    return torch.einsum("bt,bth->bh", weights, hidden) / weights.sum(dim=1, keepdim=True)


class Dropout(nn.Dropout):
    """nn.Dropout with less work for a CPU: one 64-bit random number decides on eight values, p is rounded to 1/256."""

    def forward(self, x: Tensor) -> Tensor:
        dropped = round(256 * self.p)
        if not self.training or x.device.type != "cpu" or dropped in (0, 256):
            return super().forward(x)
        numbers = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)
        keep = numbers.view(torch.uint8)[: x.numel()].view(x.shape) >= dropped
        return x * (keep * (256 / (256 - dropped))).to(x.dtype)


class SentenceEncoder(nn.Module):
    """A backbone, a pooling and, if wanted, a projection; `encode` turns texts into vectors.

    Args:
        backbone, tokenizer: as `from_pretrained` loads them.
        pooling, layers: see `pool`; layers: by default 4, or all there are.
        normalize: scale the vectors of `encode` to length 1, so that a dot product is a cosine.
        projection: behind the pooling; its width D for Linear, Tanh, LayerNorm, Dropout, or such modules as a
            sentence-transformers folder has them; None: D = H.
        max_length: texts are cut after so many tokens, special tokens included; by default the most that backbone
            and tokenizer allow.

    Attributes:
        width, dim: H and D. traits: what the backbone can do, see `backbones.Traits`; `traits.depth` is its layers.

    Raises:
        ValueError: an impossible setting, or a backbone or tokenizer that can't be used, and why.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "mean",
        layers: int | None = None,
        normalize: bool = True,
        projection: int | nn.Sequential | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        if not tokenizer.is_fast or tokenizer.pad_token_id is None:
            raise ValueError(
                f"{type(tokenizer).__name__} has no padding token or no offsets, expected a fast tokenizer with both"
            )
        self.traits, self.width, longest = try_out(backbone), backbone.config.hidden_size, longest_input(backbone)
        most, rows = self.traits.depth + 1, backbone.get_input_embeddings().num_embeddings
        last, last_id = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
        if last_id >= rows:
            what = f"has the token {last!r} with the number {last_id}, but this backbone embeds {rows}"
            raise ValueError(f"the tokenizer {what}; is it another model's?")
        if not tokenizer("")["input_ids"]:
            raise ValueError(
                "the tokenizer gives an empty text no token (no special tokens), expected at least one for each text"
            )
        layers = min(4, most) if layers is None else layers
        max_length = min(longest, tokenizer.model_max_length) if max_length is None else max_length
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
        for name, value in (("layers", layers), ("max_length", max_length)):
            if not isinstance(value, int):
                raise ValueError(f"{name} is {value!r}, expected a whole number")
        if not 1 <= layers <= most:
            raise ValueError(f"layers is {layers}, expected 1 to {most} for a backbone of {most - 1} layers")
        if not 3 <= max_length <= longest:
            raise ValueError(f"max_length is {max_length}, expected 3 to {longest}, the positions of this backbone")
        tokenizer("", truncation=True, max_length=max_length)  # now, not in the first of several threads
        self.backbone, self.tokenizer = backbone, tokenizer
        self.pooling, self.layers, self.normalize, self.max_length = pooling, layers, normalize, max_length
        if isinstance(projection, int):
            if projection < 1:
                raise ValueError(f"projection is {projection}, expected the width of a vector, 1 or more")
            modules = nn.Linear(self.width, projection), nn.Tanh(), nn.LayerNorm(projection), nn.Dropout(0.1)
            projection = nn.Sequential(*modules)
        self.projection, self.dim = projection, self.width
        for linear in (module for module in projection or () if isinstance(module, nn.Linear)):
            if linear.in_features != self.dim:
                raise ValueError(f"the projection takes {linear.in_features} numbers, expected {self.dim} as there are")
            self.dim = linear.out_features
        for module in list(backbone.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, Dropout(child.p))
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler.requires_grad_(False)  # a head of the pretraining: its output is not used here

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path | None = None, **settings: object) -> "SentenceEncoder":
        """Load an encoder: by default all-MiniLM-L6-v2, or any BERT-like model.

        Args:
            name_or_path: None for the bundled MiniLM; a directory; or a name on the model hub.
            settings: `pooling`, `layers`, `normalize`, `projection`, `max_length`; default: as saved there.

        Raises:
            FileNotFoundError: no such model on disk, and none to be had from the hub.
            ValueError: weights of all-MiniLM-L6-v2 or of `save_pretrained` with another hash, truncated ones, or not
                for this architecture; a folder of sentence-transformers with something that can't be honoured.
        """
        directory = find_model(name_or_path)
        expected = {"model.safetensors": SHA256} if directory.name == Path(MINILM).name else {}
        if (directory / SETTINGS).is_file():
            expected = read_json(directory / SETTINGS).get("sha256", {})
        for name, value in expected.items():
            check_sha256(directory / name, value)
        folder, saved = read_modules(directory)
        backbone, tokenizer = load_model(folder)
        normalizer = tokenizer.is_fast and tokenizer.backend_tokenizer.normalizer
        if saved.pop("lowercase") and not (normalizer and normalizer.normalize_str("A") == "a"):
            raise ValueError(
                f"{folder}: do_lower_case in sentence_bert_config.json can't be honoured, as the tokenizer keeps"
                " capitals; write false there and lowercase the texts yourself"
            )
        if saved["max_length"]:
            saved["max_length"] = min(saved["max_length"], longest_input(backbone))
        return cls(backbone, tokenizer, **{**saved, **settings}).eval()

    def hidden(self, batch: dict[str, Tensor], states: Tensor | None = None, depth: int = 0) -> tuple[Tensor, ...]:
        """Hidden states of a batch of `collate`, each (B, T, H): of the embeddings, then of each layer.

        With `states`, those of layer `depth`, nothing below is computed: (states, layer depth + 1, ...). Raises
        ValueError where that isn't possible (`traits.values` is None) but for the last layer.
        """
        device = self.backbone.device
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        states = None if states is None else states.to(device)
        return hidden_states(self.backbone, self.traits, ids, mask, states, depth)

    def vectors(self, states: Sequence[Tensor], mask: Tensor) -> Tensor:
        """Sentence vectors (B, D) from hidden states: pooled and projected, but not scaled to length 1."""
        pooled = pool(states, mask.to(states[-1].device), self.pooling, self.layers)
        if self.projection is None:
            return pooled
        return self.projection(pooled.to(next(self.projection.parameters(), pooled).dtype))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Sentence vectors (B, D) and hidden states of a batch of `collate`: `hidden` and `vectors` in turn."""
        states = self.hidden(batch)
        return self.vectors(states, batch["attention_mask"]), states

    def encode(self, texts: Sequence[str], precision: str = "float32", max_tokens: int = 1024) -> Tensor:
        """Turn texts into vectors, in eval mode and without gradients.

        Args:
            texts: any strings, empty ones too; what exceeds `max_length` tokens is cut.
            precision: "float32", or "bfloat16" for about twice the speed where the processor has such
                instructions; where it has not, one warning and float32.
            max_tokens: budget of tokens per batch, padding included.

        Returns:
            (len(texts), D) float32 on the CPU, in the order of the texts.
        """
        examples = tokenize(texts, self.tokenizer, self.max_length)
        vectors = torch.empty(len(examples), self.dim)
        batches = length_batches([len(example["input_ids"]) for example in examples], max_tokens)
        with inference(self, precision):
            for rows in progress(batches, "encode"):
                pooled, _ = self(collate([examples[i] for i in rows], self.tokenizer.pad_token_id))
                vectors[rows] = pooled.float().cpu()
        if not vectors.isfinite().all():
            raise FloatingPointError(
                "vectors are not finite numbers: the weights are damaged, or too large for their precision"
            )
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def save_pretrained(self, directory: str | Path) -> None:
        """Write backbone, tokenizer, projection and settings into one directory.

        `SentenceEncoder.from_pretrained(directory)` reads it, and so does sentence-transformers, where
        `SentenceTransformer(directory)` gives the vectors of `encode`. Raises OSError if the disk is full.
        """
        with replacing(directory) as folder:
            with quiet():
                self.backbone.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            write_modules(folder, self)
            write_json(folder / SETTINGS, {"sha256": hashes(folder)})
