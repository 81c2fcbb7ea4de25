"""Public data sets to measure on: not part of the course, but read in the same shape as its corpus."""

import csv
import hashlib
import json
import os
import tarfile
import urllib.request
from itertools import accumulate, groupby
from pathlib import Path

import numpy as np
import pandas as pd

from mtl_helpers.corpus import SPLITS
from mtl_helpers.tasks import TASKS, Task

_STSB = "PhilipMay/stsb-multi-mt/30de0dec4ee199b7f42351d3f1a0b19592955385/data/stsb-en-test.csv"
_TREC = "AcademiaSinicaNLPLab/sentiment_dataset/23c72429de5fb3d2f3da87bf2efb5559c15b78f7/data"
_WNUT = "leondz/emerging_entities_17/e52a2d2a71ac1a051ca2d532eef28653c5c02603"
_SNIPS = "sonos/nlu-benchmark/b86ac7f1577868c42158d0dec77db50956046696/2017-06-custom-intent-engines"
_VADER = "cjhutto/vaderSentiment/18c86513ea60b02fce8f3b1b598da43042d91b08/additional_resources"
INTENTS = {  # name: SHA-256 of the file to train on and of the one to test on
    "AddToPlaylist": (
        "fee1b4645352e70ed8a40f1f87c3b53fc3bf75f8ebc82252a22b82c107e75b01",
        "14cc9ee49ae477b1452632a6e835498cf4c32da397b16967c82abb3e50403e83",
    ),
    "BookRestaurant": (
        "7677e82cd6e9a8191f0a4502568c786278c984900b4796d3628e46f1abf73ef4",
        "4f7258ccc768b777b2eb8916532db9aa50dbd058ddf1ffb0dc59218963e7442a",
    ),
    "GetWeather": (
        "86f414b2ad8a993134d85d16e25e5d337beae47cef993c0af2a5f440405c60f6",
        "60c095e193655d6ca92be220fed3926ca25e18cd70c85664145efe25d80993af",
    ),
    "PlayMusic": (
        "901ddbe9781d1fdb8196e789c543f80df3d29ca6e237da64947905adcc0312e4",
        "922212775e26259d5bffeaf79b6048d070ca017d229df00b2cc9800f71c75d20",
    ),
    "RateBook": (
        "bb43e4b74134300d5766f6b420d0357a63402987a225f6dc92c806c9c040ce04",
        "c1f8b4114da0bb5e8afd78a8062766e18b2eabb0e717539598db01b09d04619b",
    ),
    "SearchCreativeWork": (
        "87b3432de48c71c205aa5238b41d9e3f2d70bdfcd0bea2427544fb9e4bd5e5bb",
        "8a5e830eddb185d3e4a9d27ded140a145d04766bdce0e58834676ede32d13e77",
    ),
    "SearchScreeningEvent": (
        "5447e9440c02e2fb08c3ae16b9f58a4d1332b4bc77fd34691402b02aa4399765",
        "81e1445713e03c7c3e615353c5f3fee05f369fe9834100b9b9735900a96b9498",
    ),
}
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
    "reviews": {
        "hutto_ICWSM_2014.tar.gz": (
            f"{_VADER}/hutto_ICWSM_2014.tar.gz",
            "d5bb07d87474b3eb8d30b4deccbc23f19d742a6c5718fbacc65485b70b95c5fa",
        ),
    },
    "snips": {
        f"snips/{file}": (f"{_SNIPS}/{intent}/{file}", sha256)
        for intent, both in INTENTS.items()
        for file, sha256 in zip((f"train_{intent}_full.json", f"validate_{intent}.json"), both, strict=True)
    },
}
HOST = "https://raw.githubusercontent.com/"

QUESTION_TYPE = Task("question_type", ("description", "entity", "abbreviation", "person", "location", "number"))
ENTITIES = TASKS[-1]
INTENT = Task("intent", tuple(INTENTS))
SLOTS = Task(
    "slots",
    (
        "album", "artist", "best_rating", "city", "condition_description", "condition_temperature", "country",
        "cuisine", "current_location", "entity_name", "facility", "genre", "geographic_poi", "location_name",
        "movie_name", "movie_type", "music_item", "object_location_type", "object_name",
        "object_part_of_series_type", "object_select", "object_type", "party_size_description",
        "party_size_number", "playlist", "playlist_owner", "poi", "rating_unit", "rating_value",
        "restaurant_name", "restaurant_type", "served_dish", "service", "sort", "spatial_relation", "state",
        "timeRange", "track", "year",
    ),
    "token",
)  # fmt: skip
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
            "snips", requests to a voice assistant (Coucke et al. 2018, https://arxiv.org/abs/1805.10190): an intent
            (task INTENT) and slots (task SLOTS) on the same texts. Training texts that occur again, or in the test
            part, are left out, every tenth of the others is the validation part: 12,252, 1,361 and 700 texts.
            "reviews", 3,708 sentences of reviews of electronic goods (Hu and Liu 2004), rated from -4 to 4 by twenty
            people (Hutto and Gilbert 2014, https://doi.org/10.1609/icwsm.v8i1.14550): sentiment as in the corpus,
            neutral where the mean rating is within 0.5 of zero. A test part only.

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
    if name == "snips":
        table = _read_snips(paths)
    elif name == "reviews":
        table = _read_reviews(paths[0])
    else:
        read, splits = (_read_trec, ("train", "test")) if name == "trec6" else (_read_conll, SPLITS)
        tables = [read(path).assign(split=split) for path, split in zip(paths, splits, strict=True)]
        table = pd.concat(tables, ignore_index=True)
    if name not in ("wnut17", "reviews"):
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
    path = folder / file  # in a folder of its own for a data set of many files
    if not path.is_file():
        try:
            with urllib.request.urlopen(address, timeout=30) as answer:
                raw = answer.read()
        except OSError as error:
            remedy = f"fetch {address} into that folder under this name, or set MTL_PUBLIC to the folder that holds it"
            raise FileNotFoundError(f"{path}: not there, and the download failed ({error}); {remedy}") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(raw)
    if (actual := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"{path}: its SHA-256 is {actual}, expected {sha256}; delete the file and try again")
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


def _read_reviews(path: Path) -> pd.DataFrame:
    """Lines of a number, a mean rating and a text, tabs between them, in an archive."""
    with tarfile.open(path) as archive:
        file = archive.extractfile("hutto_ICWSM_2014/amazonReviewSnippets_GroundTruth.txt")
        table = pd.read_csv(file, sep="\t", header=None, names=["id", "rating", "text"], quoting=csv.QUOTE_NONE)
    sentiment = np.select([table["rating"] > 0.5, table["rating"] < -0.5], ["positive", "negative"], "neutral")
    return pd.DataFrame({"text": table["text"], "sentiment": sentiment, "split": "test"}, dtype=object)


def _read_snips(paths: list[Path]) -> pd.DataFrame:
    """JSON: {intent: [{"data": [{"text": ..., "entity": slot, if it is one}, ...]}, ...]}; one file is Latin-1."""
    rows = []
    for path in paths:
        raw = path.read_bytes()
        try:
            requests = json.loads(raw.decode("utf-8"))
        except UnicodeDecodeError:
            requests = json.loads(raw.decode("latin-1"))
        for intent, request in ((intent, request) for intent, many in requests.items() for request in many):
            text = "".join(piece["text"] for piece in request["data"])
            ends = list(accumulate(len(piece["text"]) for piece in request["data"]))
            lead, slots = len(text) - len(text.lstrip()), []
            for piece, end in zip(request["data"], ends, strict=True):
                words = piece["text"].strip()
                if "entity" in piece and words:
                    start = end - len(piece["text"].lstrip()) - lead
                    slots.append((start, start + len(words), piece["entity"]))
            split = "train" if path.name.startswith("train_") else "test"
            rows.append({"text": text.strip(), "intent": intent, "slots": slots, "split": split})
    table = pd.DataFrame(rows, dtype=object)
    known = set(table["text"][table["split"] == "test"])
    keep = (table["split"] == "test") | ~(table["text"].isin(known) | table["text"].duplicated())
    return table[keep].sort_values("split", key=lambda split: split == "test", kind="stable").reset_index(drop=True)
