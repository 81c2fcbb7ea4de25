"""What several test files share: the corpus, the real encoder, and a tiny random model of each family."""

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the network; read when huggingface_hub is imported

import pandas as pd
import pytest
import torch
import transformers
from hypothesis import settings
from sentence_transformers import SentenceTransformer
from tokenizers import ByteLevelBPETokenizer

from mtl_helpers import MultiTaskModel, SentenceEncoder, load_corpus
from mtl_helpers.export import export
from mtl_helpers.minilm import find_minilm

settings.register_profile("course", max_examples=40, deadline=None, derandomize=True, database=None)
settings.load_profile("course")

POSITIONS = 64  # tokens that each tiny model has room for
SHAPE = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": POSITIONS,
    "initializer_range": 0.2,  # ten times the usual, so that the vectors of different texts lie well apart
}
FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "electra")


@pytest.fixture(scope="session")
def corpus() -> pd.DataFrame:
    return load_corpus()


@pytest.fixture(scope="session")
def encoder() -> SentenceEncoder:
    """The bundled MiniLM. Shared: a test that changes it works on a copy."""
    return SentenceEncoder.from_pretrained()


@pytest.fixture(scope="session")
def reference() -> SentenceTransformer:
    """The same weights in sentence-transformers."""
    return SentenceTransformer(str(find_minilm()), device="cpu")


def _word_pieces(texts: pd.Series, special: list[str]) -> dict[str, int]:
    """A WordPiece vocabulary: special tokens, every character, the 200 most frequent words."""
    counts = Counter(texts.str.lower().str.cat(sep=" ").split())
    characters = sorted(set("".join(counts)))
    words = [word for word, _ in counts.most_common(200) if len(word) > 1]
    return {piece: i for i, piece in enumerate([*special, *characters, *(f"##{c}" for c in characters), *words])}


def _tokenizer(family: str, texts: pd.Series) -> transformers.PreTrainedTokenizerBase:
    if family == "roberta":
        special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
        trained = ByteLevelBPETokenizer()
        trained.train_from_iterator(texts, vocab_size=500, special_tokens=special, show_progress=False)
        model = json.loads(trained.to_str())["model"]
        return transformers.RobertaTokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]])
    if family == "mpnet":
        return transformers.MPNetTokenizer(_word_pieces(texts, ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]))
    return transformers.BertTokenizer(_word_pieces(texts, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))


def _backbone(family: str, tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedModel:
    shape = {**SHAPE, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family in ("roberta", "mpnet"):
        shape["max_position_embeddings"] = POSITIONS + 2  # their positions start behind that of the padding
    if family == "distilbert":
        shape["hidden_dim"] = shape.pop("intermediate_size")
    if family == "electra":
        shape["embedding_size"] = 16
    return transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **shape))


@pytest.fixture(scope="session")
def family_dirs(tmp_path_factory: pytest.TempPathFactory, corpus: pd.DataFrame) -> dict[str, Path]:
    """Folders with a tiny random model of each family, as Hugging Face saves them."""
    folders = {}
    for seed, family in enumerate(FAMILIES):
        folders[family] = tmp_path_factory.mktemp("families") / family
        torch.manual_seed(seed)
        tokenizer = _tokenizer(family, corpus["text"][:600])
        tokenizer.save_pretrained(folders[family])
        _backbone(family, tokenizer).save_pretrained(folders[family])
    return folders


@pytest.fixture(params=FAMILIES)
def family_dir(request: pytest.FixtureRequest, family_dirs: dict[str, Path]) -> Path:
    return family_dirs[request.param]


@pytest.fixture
def tiny(family_dirs: dict[str, Path]) -> SentenceEncoder:
    """A tiny BERT of the test's own."""
    return SentenceEncoder.from_pretrained(family_dirs["bert"])


@pytest.fixture
def model(tiny: SentenceEncoder) -> MultiTaskModel:
    """The course's four tasks on a tiny BERT of the test's own, in eval mode."""
    torch.manual_seed(0)
    return MultiTaskModel(tiny).eval()


@pytest.fixture(scope="session")
def short(corpus: pd.DataFrame) -> pd.DataFrame:
    """Short sentences, with and without entities in turn."""
    rows = corpus[corpus["text"].str.len() < 40]
    return rows.assign(turn=rows.groupby(rows["entities"].map(bool)).cumcount()).sort_values("turn", kind="stable")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Another number of threads adds in another order: equal to the bit are only runs with the same number."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, family_dirs: dict[str, Path]) -> Callable[[str], Path]:
    """Function of a family: the folder of a saved and exported model, each family with another pooling or head."""
    settings = {
        "bert": ({"pooling": "mean"}, "linear"),
        "distilbert": ({"pooling": "cls"}, "mlp"),
        "roberta": ({"pooling": "max", "projection": 16}, "linear"),
        "mpnet": ({"pooling": "weighted"}, "linear"),
        "electra": ({"pooling": "last_layers", "max_length": 30}, "mlp"),
    }
    logging.getLogger("torch.__trace").propagate = False  # 100,000 lines, which pytest would keep
    folders: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in folders:
            torch.manual_seed(1)
            how, head = settings[family]
            path = tmp_path_factory.mktemp("exported") / family
            MultiTaskModel(SentenceEncoder.from_pretrained(family_dirs[family], **how), head=head).save_pretrained(path)
            export(path)
            folders[family] = path
        return folders[family]

    return folder
