"""Planted facts: the corpus of `exact-titan study facts`, and the distances of the asked facts."""

import gzip
import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from exact_titan.cli import main
from exact_titan.dataset import Manifest, PackedDataset
from exact_titan.dataset.dataset import NO_LABEL
from exact_titan.dataset.verify import verify
from exact_titan.errors import InputError
from exact_titan.packing import pack
from exact_titan.study.fact_corpus import KEYS, TEXT_VOCAB, plant_facts
from exact_titan.study.facts import FactTokens, fact_distances
from tests.support import word_tokenizer

SIZES = {"short_len": 16, "long_len": 48, "tokens": 15_000, "val_tokens": 4_000}
STAGES = {"short": 16, "long": 48}


def write_texts(file: Path, texts: int) -> Path:
    """Write texts of about 3,000 characters. Every text has its own words, and words that look like fact tokens."""
    draw = random.Random(0)
    with gzip.open(file, "wt") as out:
        for number in range(texts):
            words = [f"{number:02d}" + "".join(draw.choices("aeilnorst", k=3)) for _ in range(500)]
            words[::50] = ["<|key-3|><|value-5|><|endoftext|>"] * 10
            out.write(json.dumps({"text": " ".join(words)}) + "\n")
    return file


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("facts")
    plant_facts([write_texts(folder / "texts.jsonl.gz", 20)], out=folder / "facts", **SIZES)
    return folder


def documents(dataset: Path, split: str) -> list[list[int]]:
    """Return the ids of every document of a split. The documents of policy concat are in their order in the windows."""
    manifest, packed = Manifest.read(dataset), PackedDataset(dataset, split)
    found: list[list[int]] = [[]]
    for k in range(len(packed)):
        window = packed[k]
        for token, label in zip(window["input"].tolist(), window["labels"].tolist(), strict=True):
            if label == NO_LABEL:
                continue
            found[-1].append(token)
            if label == manifest.tokenizer.eos_id:
                found.append([])
    assert not found.pop()
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_the_datasets_are_whole_and_have_their_sizes(corpus: Path, stage: str) -> None:
    dataset = corpus / "facts" / stage
    manifest = Manifest.read(dataset)
    assert list(verify(dataset))
    assert manifest.window == STAGES[stage]
    assert manifest.tokenizer.vocab_size == TEXT_VOCAB + 1 + 2 * KEYS
    for split, tokens in (("train", SIZES["tokens"]), ("val", SIZES["val_tokens"])):
        assert tokens <= manifest.splits[split].targets < tokens + 8 * 48
    lengths = [len(ids) for ids in documents(dataset, "train")]
    assert min(lengths) >= 16
    assert max(lengths) <= 8 * 48
    assert np.median(lengths) == pytest.approx(2 / 5 * 48, rel=0.25)


@pytest.mark.parametrize("stage", STAGES)
def test_a_fact_has_one_value_and_stands_in_fact_tokens_only(corpus: Path, stage: str) -> None:
    dataset = corpus / "facts" / stage
    tokens = FactTokens.read(dataset)
    asked = 0
    for ids in documents(dataset, "train"):
        values: dict[int, int] = {}
        for at, key in enumerate(ids):
            if not tokens.first_key <= key < tokens.first_key + tokens.keys:
                continue
            value = ids[at + 1]
            assert tokens.first_value <= value < tokens.first_value + tokens.values
            asked += key in values
            assert values.setdefault(key, value) == value
        # Words of the text that spell a fact token stay text: a value stands only after a key.
        for at, token in enumerate(ids):
            if token >= tokens.first_value:
                assert tokens.first_key <= ids[at - 1] < tokens.first_value
        assert TEXT_VOCAB not in ids
    assert asked > 100


def test_validation_texts_are_not_in_the_training_split(corpus: Path) -> None:
    """The words of a text begin with the number of the text."""
    found = {}
    for stage in STAGES:
        dataset = corpus / "facts" / stage
        tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
        for split in ("train", "val"):
            words = [word for ids in documents(dataset, split) for word in tokenizer.decode(ids).split()]
            found[stage, split] = {word[:2] for word in words if len(word) == 5 and word[:2].isdigit()}
    assert len(found["long", "val"] | found["short", "val"]) == 2
    for stage in STAGES:
        for other in STAGES:
            assert not found[stage, "train"] & found[other, "val"]


def test_equal_arguments_give_equal_datasets_and_another_seed_does_not(corpus: Path, tmp_path: Path) -> None:
    def fingerprints(seed: int) -> list[str]:
        manifests = plant_facts([corpus / "texts.jsonl.gz"], out=tmp_path / str(seed), seed=seed, **SIZES)
        return [manifest.fingerprint for manifest in manifests.values()]

    first = [Manifest.read(corpus / "facts" / stage).fingerprint for stage in STAGES]
    assert fingerprints(0) == first
    assert not set(fingerprints(1)) & set(first)


def naive_distances(dataset: Path, split: str) -> list[int]:
    tokens, packed = FactTokens.read(dataset), PackedDataset(dataset, split)
    keys = range(tokens.first_key, tokens.first_key + tokens.keys)
    values = range(tokens.first_value, tokens.first_value + tokens.values)
    found = []
    for k in range(len(packed)):
        window = {name: tensor.tolist() for name, tensor in packed[k].items()}
        for at, (token, label) in enumerate(zip(window["input"], window["labels"], strict=True)):
            if label == NO_LABEL:
                continue
            distance = 0
            if token in keys and label in values:
                for back in range(1, window["positions"][at] + 1):
                    if (window["input"][at - back], window["labels"][at - back]) == (token, label):
                        distance = back
                        break
            found.append(distance)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_distances_equal_a_scan(corpus: Path, stage: str) -> None:
    dataset = corpus / "facts" / stage
    distances = fact_distances(dataset, "val")
    assert distances.dtype == np.int32
    assert len(distances) == Manifest.read(dataset).splits["val"].targets
    assert np.count_nonzero(distances) > 50
    assert distances.tolist() == naive_distances(dataset, "val")


def test_distances_of_a_document_by_hand(tmp_path: Path) -> None:
    """Keys 10 to 19, values 20 to 29. Windows of 8 inputs: the second document is cut after its sixth input."""
    word_tokenizer(tmp_path / "tokenizer.json", 30)
    texts = ["11 21", "1 12 22 13 12 22 12 23 12 22"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    pack([tmp_path / "a.jsonl"], tokenizer=tmp_path / "tokenizer.json", seq_len=8, out=tmp_path / "packed")
    FactTokens(10, 10, 20, 10).write(tmp_path / "packed")
    assert PackedDataset(tmp_path / "packed")[1]["input"].tolist() == [12, 23, 12, 22, 0, 0, 0, 0]
    # Window 0: 11>21 21>0 | 1>12 12>22 22>13 13>12 12>22 22>12. Window 1: 12>23 23>12 12>22 22>0.
    assert fact_distances(tmp_path / "packed", "train").tolist() == [0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0]


@pytest.mark.parametrize(
    ("texts", "options", "message"),
    [
        (1, {}, "the sources have 1 text: give 2 texts or more"),
        (2, {"long_len": 4096}, "the longest of 1 texts for the split .* give longer texts, or a smaller --long-len"),
        (2, {"short_len": 48}, "--short-len is 48 and --long-len is 48"),
        (2, {"val_tokens": 0}, "--val-tokens is 0: one window of --long-len 48 needs more"),
        (2, {"text_key": "body"}, r"texts.jsonl.gz: no document with text under 'body', see --text-key"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(tmp_path: Path, texts: int, options: dict, message: str) -> None:
    file = write_texts(tmp_path / "texts.jsonl.gz", texts)
    sizes = SIZES | {"tokens": 10_000} | options
    if "long_len" in options:
        sizes["tokens"] = sizes["val_tokens"] = 10_000
    with pytest.raises(InputError, match=message) as error:
        plant_facts([file], out=tmp_path / "facts", **sizes)
    assert "\n" not in str(error.value)
    assert [one.name for one in tmp_path.iterdir()] == ["texts.jsonl.gz"]


def test_the_command_says_what_it_made(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = [word for name, value in SIZES.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    source = str(corpus / "texts.jsonl.gz")
    assert main(["study", "facts", source, "--out", str(tmp_path / "facts"), *sizes]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        f"{tmp_path}/facts/{stage}, {split}" for stage in STAGES for split in ("train", "val")
    ]
    distances = fact_distances(corpus / "facts" / "long", "val")
    asked, far = np.count_nonzero(distances), np.count_nonzero(distances >= 12)
    assert lines[-1].endswith(f"{asked} asked facts, {far} of them 12 tokens or more back")

    assert main(["study", "facts", source, "--out", str(tmp_path / "facts"), *sizes]) == 2
    assert re.fullmatch(r"exact-titan: error: --out .*facts exists: .*\n", capsys.readouterr().err)


def test_an_existing_folder_and_a_dataset_without_facts_are_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out .*facts exists: give a new folder"):
        plant_facts([corpus / "texts.jsonl.gz"], out=corpus / "facts", **SIZES)
    with pytest.raises(InputError, match=r"has no facts\.json: facts can be measured only in a dataset of"):
        fact_distances(tmp_path, "val")
    (tmp_path / "facts.json").write_text('{"first_key": 1, "keys": "many"}')
    with pytest.raises(InputError, match=r"facts\.json: key 'keys' is 'many': it must be an integer"):
        FactTokens.read(tmp_path)
