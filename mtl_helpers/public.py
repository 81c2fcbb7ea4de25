"""Public data sets to measure on: not part of the course, but read in the same shape as its corpus."""

import hashlib
import os
import urllib.request
from itertools import accumulate, groupby
from pathlib import Path

import pandas as pd

from .corpus import SPLITS
from .tasks import TASKS, Task

_STSB = "PhilipMay/stsb-multi-mt/30de0dec4ee199b7f42351d3f1a0b19592955385/data/stsb-en-test.csv"
_TREC = "AcademiaSinicaNLPLab/sentiment_dataset/23c72429de5fb3d2f3da87bf2efb5559c15b78f7/data"
_WNUT = "leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603"
PUBLIC = {  # name: {file name: (where it is, in which version; its SHA-256)}
    "stsb": {"stsb-en-test.csv": (_STSB, "11523b625219e94e9ca05d2816b5f02cac1614c5894fe657376fa0806378d053")},
    "trec6": {
        "trec-train.txt": (
            f"{_TREC}/TREC.train.all",
            "c8183fd8c2a5cc4a9a1c56548d7c6410a8b71ed7843df9ef1f0a05cd7cf2fb3e",
        ),
        "trec-test.txt": (
            f"{_TREC}/TREC.test.all",
            "92a6a3cede5678b447ef5f1d7ec474134fcda211e6590e6fa627b4a2c68e4566",
        ),
    },
    "wnut17": {
        "wnut17train.conll": (
            f"{_WNUT}/wnut17train.conll",
            "731820e13f71af324c6b55a1575ec2ce59fbaa2a0806f8f0400b98d56cd6a7a5",
        ),
        "emerging.dev.conll": (
            f"{_WNUT}/emerging.dev.conll",
            "e053b752b8155113ca66e7db08af5f2f5f43ab993694e4774f1ec5bad42312d8",
        ),
        "emerging.test.annotated": (
            f"{_WNUT}/emerging.test.annotated",
            "2aa79b764e56ec9264a1b30fdd9b70195bd00ff400b62edd8f399d5f13c178f0",
        ),
    },
}
HOST = "https://raw.githubusercontent.com/"

QUESTION_TYPE = Task("question_type", ("description", "entity", "abbreviation", "person", "location", "number"))
ENTITIES = TASKS[-1]
_WNUT_TYPES = Task(
    "entities", ("person", "location", "corporation", "group", "product", "creative-work"), level="token"
)
_OUR_TYPES = {"person": "PER", "location": "LOC", "corporation": "ORG", "group": "ORG"}


def load_public(name: str) -> pd.DataFrame:
    """Read a public data set that is measured on but not shipped.

    Args:
        name: "stsb", the test part of the STS benchmark (Cer et al. 2017, https://aclanthology.org/S17-2001):
            1,379 pairs: sentence_1, sentence_2, score (similarity, 0 to 5).
            "trec6", types of questions (Li and Roth 2002, https://aclanthology.org/C02-1150): 5,452 and 500 texts with
            a question_type (task QUESTION_TYPE); every tenth of the training part is the validation part.
            "wnut17", names in noisy text (Derczynski et al. 2017, https://aclanthology.org/W17-4418): 3,394, 1,009 and
            1,287 texts (words joined by spaces) with entities as in the corpus: person is PER, location LOC,
            corporation and group ORG; products and creative works are no entities there.

    Files are taken from the folder that the environment variable MTL_PUBLIC names (default: ~/.cache/mtl_helpers),
    downloaded into it if they are not there, and checked against their SHA-256.

    Returns:
        stsb: as above. The others as `load_corpus` gives them: id, text, a column for the task, split.

    Raises:
        FileNotFoundError: not in the folder and not to be downloaded; says where to put it.
        ValueError: an unknown name, or a file with another hash.
    """
    if name not in PUBLIC:
        raise ValueError(f"public data set {name!r}, expected one of {', '.join(PUBLIC)}")
    paths = [_fetch(file, HOST + place, sha256) for file, (place, sha256) in PUBLIC[name].items()]
    if name == "stsb":
        return pd.read_csv(paths[0], header=None, names=["sentence_1", "sentence_2", "score"])
    read, splits = (_read_trec, ("train", "test")) if name == "trec6" else (_read_conll, SPLITS)
    parts = [read(path).assign(split=split) for path, split in zip(paths, splits, strict=True)]
    table = pd.concat(parts, ignore_index=True)
    if name == "trec6":
        table.loc[(table["split"] == "train") & (table.index % 10 == 9), "split"] = "validation"
    table.insert(0, "id", [f"{name}-{i}" for i in range(1, len(table) + 1)])
    return table


def questions_and_names(split: str, n: int | None = None, seed: int = 0) -> pd.DataFrame:
    """TREC-6 and WNUT-17 as one table with two tasks, question_type and entities; each row lacks the other's label.

    Args:
        split: "train", "validation" or "test".
        n: number of texts to draw of each data set (default: all).
        seed: of the draw.
    """
    table = pd.concat([load_public("trec6"), load_public("wnut17")], ignore_index=True)
    table = table[table["split"] == split]
    return table if n is None else table.groupby(table.question_type.isna()).sample(n, random_state=seed)


def _fetch(file: str, address: str, sha256: str) -> Path:
    """Path of a file in the local folder, downloaded if need be and checked."""
    folder = Path(os.environ.get("MTL_PUBLIC", Path.home() / ".cache" / "mtl_helpers"))
    path = folder / file
    if not path.is_file():
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                raw = answer.read()
        except OSError as error:
            remedy = f"fetch {address} into that folder under this name, or set MTL_PUBLIC to the folder that holds it"
            raise FileNotFoundError(f"{path}: not there, and the download failed ({error}); {remedy}") from error
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"{path}: its SHA-256 is {found}, expected {sha256}; delete the file and try again")
    return path


def _read_trec(path: Path) -> pd.DataFrame:
    """Lines of a digit, a space and a question; Latin-1."""
    lines = [line for line in path.read_text(encoding="latin-1").split("\n") if line.strip()]
    labels = [QUESTION_TYPE.labels[int(line[0])] for line in lines]
    return pd.DataFrame({"text": [line[2:].strip() for line in lines], "question_type": labels}, dtype=object)


def _read_conll(path: Path) -> pd.DataFrame:
    """Lines of a word, a tab and a BIO class, texts separated by empty lines; words are joined by spaces."""
    rows = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for is_text, group in groupby(lines, key=lambda line: bool(line.strip())):
        if is_text:
            words, labels = zip(*(line.rstrip().rsplit("\t", 1) for line in group), strict=True)
            ends = list(accumulate(len(word) + 1 for word in words))
            offsets = [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]
            spans = _WNUT_TYPES.decode([_WNUT_TYPES.index(label) for label in labels], offsets)
            kept = [(start, end, _OUR_TYPES[kind]) for start, end, kind in spans if kind in _OUR_TYPES]
            rows.append({"text": " ".join(words), "entities": kept})
    return pd.DataFrame(rows, dtype=object)
