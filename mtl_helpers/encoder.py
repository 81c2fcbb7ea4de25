"""Sentence encoders: any Hugging Face encoder, pooled to one vector per text.

Pooling after Reimers and Gurevych 2019, "Sentence-BERT" (https://arxiv.org/abs/1908.10084); the position-weighted
mean is that of Muennighoff 2022, "SGPT" (https://arxiv.org/abs/2202.08904).
Shapes: B texts, T tokens, H width of the backbone, D width of a sentence vector.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .corpus import collate, length_batches, progress, tokenize
from .minilm import MINILM, SHA256, check_sha256, find_minilm, sha256_of

SETTINGS = "encoder.json"
POOLINGS = ("mean", "cls", "max", "weighted", "last_layers")


def pool(states: Sequence[Tensor], mask: Tensor, how: str = "mean", layers: int = 4) -> Tensor:
    """Reduce token vectors to one vector per text, without the padding.

    Args:
        states: hidden states, each (B, T, H); the last is pooled, `last_layers` first averages the last `layers`.
        mask: (B, T), 1 for tokens and 0 for padding.
        how: mean | cls (the first token) | max (per dimension) | weighted (mean with weights 1, 2, 3, ... by
            position) | last_layers (mean over tokens and over the last `layers` hidden states).

    Returns:
        (B, H).
    """
    hidden = torch.stack(tuple(states[-layers:])).mean(0) if how == "last_layers" else states[-1]
    if how == "cls":
        return hidden[torch.arange(hidden.shape[0], device=hidden.device), mask.argmax(dim=1)]
    if how == "max":
        return hidden.masked_fill(mask[:, :, None] == 0, -torch.inf).amax(dim=1)
    weights = mask.to(torch.float32)
    if how == "weighted":
        weights = weights * weights.cumsum(dim=1)
    elif how not in ("mean", "last_layers"):
        raise ValueError(f"pooling is {how!r}, expected one of {', '.join(POOLINGS)}")
    return torch.einsum("bt,bth->bh", weights, hidden.float()) / weights.sum(dim=1, keepdim=True)


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
        projection: width D of a projection Linear, Tanh, LayerNorm, Dropout behind the pooling; None: D = H.
        max_length: texts are cut after so many tokens, special tokens included.
    """

    def __init__(
        self,
        backbone: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pooling: str = "mean",
        layers: int | None = None,
        normalize: bool = True,
        projection: int | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__()
        width, depth, longest = (
            backbone.config.hidden_size,
            backbone.config.num_hidden_layers,
            _longest(backbone),
        )
        layers = min(4, depth + 1) if layers is None else layers
        max_length = longest if max_length is None else max_length
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}, expected one of {', '.join(POOLINGS)}")
        if not 1 <= layers <= depth + 1:
            raise ValueError(f"layers is {layers}, expected 1 to {depth + 1} for a backbone of {depth} layers")
        if not 3 <= max_length <= longest:
            raise ValueError(f"max_length is {max_length}, expected 3 to {longest}, the positions of this backbone")
        self.backbone, self.tokenizer = backbone, tokenizer
        self.pooling, self.layers, self.normalize, self.max_length = pooling, layers, normalize, max_length
        self.projection = None
        if projection is not None:
            parts = nn.Linear(width, projection), nn.Tanh(), nn.LayerNorm(projection), nn.Dropout(0.1)
            self.projection = nn.Sequential(*parts)
        self.dim = projection or width
        for module in list(backbone.modules()):
            for name, child in module.named_children():
                if type(child) is nn.Dropout:
                    setattr(module, name, Dropout(child.p))
        if getattr(backbone, "pooler", None) is not None:
            backbone.pooler.requires_grad_(False)  # a head of the pretraining: its output is not used here

    @classmethod
    def from_pretrained(
        cls, name_or_path: str | Path | None = None, sha256: str | None = None, **settings
    ) -> "SentenceEncoder":
        """Load an encoder: by default all-MiniLM-L6-v2, or any BERT-like model.

        Args:
            name_or_path: None for the bundled MiniLM; a directory; or a name on the model hub.
            sha256: expected hash of model.safetensors. Always checked for all-MiniLM-L6-v2 and for what
                `save_pretrained` wrote.
            settings: `pooling`, `layers`, `normalize`, `projection`, `max_length`; default: as saved there.

        Raises:
            FileNotFoundError: no such model on disk, and none to be had from the hub.
            ValueError: weights with another hash, truncated, or not for this architecture.
        """
        directory = _find(name_or_path)
        saved = _saved_settings(directory)
        expected = saved.pop("sha256", {"model.safetensors": SHA256} if directory.name == Path(MINILM).name else {})
        for name, value in {**expected, **({"model.safetensors": sha256} if sha256 else {})}.items():
            check_sha256(directory / name, value)
        if not [path for pattern in ("tokenizer.json", "vocab.*", "*.model") for path in directory.glob(pattern)]:
            raise FileNotFoundError(f"{directory}: holds no tokenizer.json, expected a complete model directory")
        for path in directory.glob("*.json"):
            read_json(path)  # damaged ones are named here
        with _quiet():
            try:
                tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
                options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
                backbone, info = AutoModel.from_pretrained(directory, output_loading_info=True, **options)
            except (SafetensorError, RuntimeError) as error:
                what = "truncated, damaged, or of other shapes than config.json says; fetch or save the model again"
                raise ValueError(f"{directory / 'model.safetensors'}: {what}") from error
        missing = [key for key in info["missing_keys"] if not key.startswith("pooler.")]
        if missing:
            kind = backbone.config.model_type
            raise ValueError(
                f"{directory}: no weights for {missing[0]} and {len(missing) - 1} more; expected a {kind} encoder"
            )
        encoder = cls(backbone, tokenizer, **{**saved, **settings})
        if encoder.projection is not None and "projection" not in settings:
            encoder.projection.load_state_dict(load_file(directory / "projection.safetensors"))
        return encoder.eval()

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Encode a batch of `collate`.

        Returns:
            Sentence vectors (B, D), pooled and projected but not scaled to length 1; and the hidden states, one
            (B, T, H) for the embeddings and one for each layer.
        """
        device = self.backbone.device
        ids, mask = batch["input_ids"].to(device), batch["attention_mask"].to(device)
        if "states" in batch:  # of a frozen lower part, computed before
            states = self._from_layer(batch["frozen_layers"], batch["states"].to(device), ids, mask)
        else:
            states = self.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        vectors = pool(states, mask, self.pooling, self.layers)
        return (vectors if self.projection is None else self.projection(vectors)), states

    def _from_layer(self, depth: int, states: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        """Hidden states from layer `depth` upwards; `states` are those of layer `depth`, nothing below is computed."""
        layers = layers_of(self.backbone)
        if depth == len(layers):
            return (states,)
        owner = next(module for module in self.backbone.modules() if layers in module.children())
        name = next(name for name, child in owner.named_children() if child is layers)
        first = layers[depth].register_forward_pre_hook(lambda _, arguments: (states, *arguments[1:]))
        setattr(owner, name, layers[depth:])
        try:
            found = self.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        finally:
            setattr(owner, name, layers)
            first.remove()
        return (states, *found[1:])

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
                found, _ = self(collate([examples[i] for i in rows], self.tokenizer.pad_token_id))
                vectors[rows] = found.float().cpu()
        return F.normalize(vectors, dim=1) if self.normalize else vectors

    def save_pretrained(self, directory: str | Path) -> None:
        """Write backbone, tokenizer, projection and settings into one directory.

        `SentenceEncoder.from_pretrained(directory)` reads it, and so does sentence-transformers, where
        `SentenceTransformer(directory)` gives the vectors of `encode`.
        """
        from sentence_transformers.sentence_transformer import modules as parts

        depth, width = self.backbone.config.num_hidden_layers, self.backbone.config.hidden_size
        how = {"weighted": "weightedmean", "last_layers": "mean"}.get(self.pooling, self.pooling)
        modules = [parts.Pooling(width, how)]
        if self.pooling == "last_layers":
            modules.insert(0, parts.WeightedLayerPooling(width, depth, layer_start=depth + 1 - self.layers))
        if self.projection is not None:
            dense, norm = parts.Dense(width, self.dim), parts.LayerNorm(self.dim)
            dense.linear, norm.norm = self.projection[0], self.projection[2]
            modules += [dense, norm]
        if self.normalize:
            modules.append(parts.Normalize())
        with replacing(directory) as folder:
            with _quiet():
                self.backbone.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            if self.pooling == "last_layers":  # sentence-transformers reads from here that it needs all layers
                write_json(
                    folder / "config.json",
                    {**read_json(folder / "config.json"), "output_hidden_states": True},
                )
            listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
            for i, module in enumerate(modules, start=1):
                name = type(module).__name__
                (folder / f"{i}_{name}").mkdir()
                module.save(str(folder / f"{i}_{name}"))
                listed.append(
                    {
                        "idx": i,
                        "name": str(i),
                        "path": f"{i}_{name}",
                        "type": f"sentence_transformers.models.{name}",
                    }
                )
            write_json(folder / "modules.json", listed)
            write_json(
                folder / "sentence_bert_config.json",
                {"max_seq_length": self.max_length, "do_lower_case": False},
            )
            if self.projection is not None:
                save_file(self.projection.state_dict(), folder / "projection.safetensors")
            settings = {name: getattr(self, name) for name in ("pooling", "layers", "normalize", "max_length")}
            settings["projection"] = None if self.projection is None else self.dim
            write_json(folder / SETTINGS, {**settings, "sha256": hashes(folder)})


# ------------------------------------------------------------------------------------------- precision


def layers_of(backbone: PreTrainedModel) -> nn.ModuleList:
    """The transformer layers of a backbone, from the bottom up, whatever its family calls them."""
    depth = backbone.config.num_hidden_layers
    return next(m for m in backbone.modules() if isinstance(m, nn.ModuleList) and len(m) == depth)


def bfloat16_is_fast(device: torch.device) -> bool:
    """Whether a device multiplies bfloat16 in hardware (CPU: AVX512-BF16 or AMX); elsewhere it is slower."""
    if device.type == "cpu":
        found = torch.cpu.get_capabilities()
        return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported()


def autocast(device: torch.device, precision: str) -> AbstractContextManager:
    """Context in which matrix products run in `precision`; one warning and float32 where that doesn't pay.

    Raises ValueError for anything but "float32" and "bfloat16".
    """
    if precision not in ("float32", "bfloat16"):
        raise ValueError(f"precision is {precision!r}, expected 'float32' or 'bfloat16'")
    if precision == "bfloat16" and not bfloat16_is_fast(device):
        warnings.warn(f"this {device.type} has no fast bfloat16: computing in float32", stacklevel=5)
        precision = "float32"
    return torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()


@contextmanager
def inference(module: nn.Module, precision: str = "float32") -> Iterator[None]:
    """Eval mode without gradients; afterwards each part of the module is in the mode it was in before."""
    modes = {part: part.training for part in module.modules()}
    try:
        with torch.inference_mode(), autocast(next(module.parameters()).device, precision):
            module.eval()
            yield
    finally:
        for part, mode in modes.items():
            part.training = mode


# ------------------------------------------------------------------------------------- files and folders


@contextmanager
def replacing(directory: str | Path) -> Iterator[Path]:
    """Yield an empty folder and, if all goes well, move its files into `directory`, descriptions last.

    A save that is interrupted leaves the old model, or hashes that don't fit, which loading notices.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as folder:
        yield Path(folder)
        umask = os.umask(0)
        os.umask(umask)
        for path in Path(folder).rglob("*.safetensors"):
            path.chmod(0o666 & ~umask)  # safetensors writes files that nobody else may read
        written = [path.relative_to(folder) for path in Path(folder).rglob("*") if path.is_file()]
        for name in sorted(written, key=lambda name: name.name in (SETTINGS, "tasks.json")):
            (directory / name).parent.mkdir(exist_ok=True)
            os.replace(folder / name, directory / name)


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each safetensors file directly in a folder."""
    return {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}


def read_json(path: Path) -> dict:
    """Read a JSON object. FileNotFoundError if the file is missing, ValueError naming it if it is damaged."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, expected a complete model directory; save or fetch it again")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error}), expected JSON; save or fetch the model again") from error


def write_json(path: Path, value: dict | list) -> None:
    """Write JSON that a person can read too."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _find(name_or_path: str | Path | None) -> Path:
    """Directory of a model: the bundled MiniLM, a local directory, or a snapshot from the hub."""
    if name_or_path is None or (str(name_or_path) in (MINILM, Path(MINILM).name) and not Path(name_or_path).exists()):
        return find_minilm()
    directory = Path(name_or_path).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise FileNotFoundError(f"{directory}: holds no config.json, expected a saved Hugging Face model")
        return directory
    try:
        return Path(
            snapshot_download(str(name_or_path), allow_patterns=["*.json", "*.txt", "*.model", "model.safetensors"])
        )
    except Exception as error:
        what = "neither a directory here nor a model that the hub would give"
        raise FileNotFoundError(
            f"{name_or_path}: {what} ({type(error).__name__}); pass a directory, or None for MiniLM"
        ) from error


def _saved_settings(directory: Path) -> dict:
    """Settings written by `save_pretrained`, or as far as sentence-transformers' files tell them."""
    if (directory / SETTINGS).is_file():
        return read_json(directory / SETTINGS)
    settings = {}
    if (directory / "sentence_bert_config.json").is_file():
        settings["max_length"] = read_json(directory / "sentence_bert_config.json").get("max_seq_length")
    if (directory / "1_Pooling" / "config.json").is_file():
        found = read_json(directory / "1_Pooling" / "config.json")
        old_style = [key for key, value in found.items() if key.startswith("pooling_mode_") and value is True]
        mode = found.get("pooling_mode") or (old_style or ["mean"])[0].removeprefix("pooling_mode_").removesuffix(
            "_tokens"
        )
        settings["pooling"] = {"cls_token": "cls", "weightedmean": "weighted"}.get(mode, mode)
    return settings


def _longest(backbone: PreTrainedModel) -> int:
    """Tokens that the position embeddings have room for (RoBERTa and MPNet start behind the padding's)."""
    for name, module in backbone.named_modules():
        if name.endswith("position_embeddings"):
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return 512


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and load reports from transformers."""
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
