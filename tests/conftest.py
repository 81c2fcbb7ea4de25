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
from tokenizers import ByteLevelBPETokenizer, Tokenizer, models, pre_tokenizers, processors, trainers

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
FAMILIES = ("bert", "distilbert", "roberta", "mpnet", "electra", "albert", "deberta-v2", "modernbert", "xlm-roberta")
EXTRA = {  # settings of a family's own
    "distilbert": {"hidden_dim": 64},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},  # its three layers are one, applied three times
    "deberta-v2": {  # as in DeBERTa v3 but for the convolution behind the first layer, which is that of v2
        **{"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
        **{"position_buckets": 16, "norm_rel_ebd": "layer_norm", "share_att_key": True, "conv_kernel_size": 3},
    },
    "modernbert": {  # layers of two kinds; rotary positions
        **{"local_attention": 8, "global_attn_every_n_layers": 2},
        **{"cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3},
    },
}


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


def _unigram(texts: pd.Series, special: list[str]) -> list[tuple[str, float]]:
    """A vocabulary as SentencePiece has it: special tokens, then pieces, in which "▁" stands for a space."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def _bytes(texts: pd.Series, special: list[str]) -> dict:
    """A byte-level BPE model: its vocab and merges."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=500, special_tokens=special, show_progress=False)
    return json.loads(trained.to_str())["model"]


def _untrimmed(texts: pd.Series, special: list[str]) -> transformers.PreTrainedTokenizerBase:
    """Byte-level BPE as in ModernBERT: a token's offsets include the space before the word."""
    model = _bytes(texts, special)
    tokenizer = Tokenizer(models.BPE(model["vocab"], [tuple(merge) for merge in model["merges"]]))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    ends = [(token, model["vocab"][token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = {f"{token.strip('[]').lower()}_token": token for token in special}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _tokenizer(family: str, texts: pd.Series) -> transformers.PreTrainedTokenizerBase:
    """WordPiece, byte-level BPE or Unigram, as the family has it."""
    brackets, tags = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    match family:
        case "roberta":
            model = _bytes(texts, tags)
            return transformers.RobertaTokenizer(model["vocab"], [tuple(merge) for merge in model["merges"]])
        case "modernbert":
            return _untrimmed(texts, brackets)
        case "xlm-roberta":
            return transformers.XLMRobertaTokenizer(_unigram(texts, tags))
        case "albert":
            return transformers.AlbertTokenizer(_unigram(texts, ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]))
        case "deberta-v2":
            return transformers.DebertaV2Tokenizer(_unigram(texts, brackets))
        case "mpnet":
            return transformers.MPNetTokenizer(_word_pieces(texts, ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]))
    return transformers.BertTokenizer(_word_pieces(texts, brackets))


def _backbone(family: str, tokenizer: transformers.PreTrainedTokenizerBase) -> transformers.PreTrainedModel:
    shape = {**SHAPE, **EXTRA.get(family, {}), "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    if family in ("roberta", "mpnet", "xlm-roberta"):
        shape["max_position_embeddings"] = POSITIONS + 2  # their positions start behind that of the padding
    if family == "distilbert":
        del shape["intermediate_size"]
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
        "albert": ({"pooling": "mean"}, "linear"),
        "deberta-v2": ({"pooling": "cls"}, "linear"),
        "modernbert": ({"pooling": "mean", "max_length": 50}, "linear"),
        "xlm-roberta": ({"pooling": "mean", "projection": 16}, "mlp"),
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Each of two workers, which get half of the tests each, begins with half of the notebooks: none runs on alone."""
    notebooks = [item for item in items if item.name.startswith("test_running_again")]
    rest = [item for item in items if item not in notebooks]
    room = len(items) // 2 - len(notebooks[::2])
    items[:] = [*notebooks[::2], *rest[:room], *notebooks[1::2], *rest[room:]]
