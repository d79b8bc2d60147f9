"""A source that gives no document to the dataset."""

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from exact_titan.dataset import Manifest
from exact_titan.errors import InputError
from exact_titan.packing import Corpus, CorpusSource, pack
from tests.support import word_tokenizer


def source(folder: Path, name: str, lengths: list[int], **keys: Any) -> CorpusSource:
    """Write a source of documents with these numbers of tokens, the end-of-text token included."""
    (folder / name).mkdir(exist_ok=True)
    for number, length in enumerate(lengths):
        (folder / name / f"{number:02d}.txt").write_text("7 " * (length - 1))
    if "weight" in keys:
        keys["weight"] = Fraction(keys["weight"])
    return CorpusSource(path=name, **keys)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    word_tokenizer(tmp_path / "tokenizer.json", 300)
    return tmp_path


def pack_corpus(folder: Path, corpus: Corpus) -> None:
    pack(corpus, tokenizer=folder / "tokenizer.json", seq_len=8, out=folder / "out", part_bytes=100)


def refused(folder: Path, corpus: Corpus, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pack_corpus(folder, corpus)
    assert not (folder / "out").exists()


SHARE = "source a gives no document: its share of the mix is"
FIRST = "and its first document has 50 tokens"


@pytest.mark.parametrize(
    ("lengths", "weights", "unit", "total", "message"),
    [
        (
            [[50, 50], [4] * 99],
            (1, 1),
            "tokens",
            80,
            f"^mix: {SHARE} 40 tokens, {FIRST}: raise tokens, which is 80, or",
        ),
        ([[50, 50], [4] * 10], (1, 1), "tokens", None, f"{SHARE} 40 tokens, {FIRST}: give the other sources more"),
        ([[4, 4], [4] * 9], (1, 9), "documents", 9, f"{SHARE} 0 documents: raise documents, which is 9"),
        ([[4, 4], [4] * 9], (1, 99), "tokens", 60, f"{SHARE} 0 tokens: raise"),
    ],
)
def test_a_share_that_no_document_fits(
    folder: Path, lengths: list[list[int]], weights: tuple[int, int], unit: str, total: int | None, message: str
) -> None:
    sources = [source(folder, name, one, weight=w) for name, one, w in zip("ab", lengths, weights, strict=True)]
    refused(folder, Corpus(sources, unit, total, "mix"), message)


def test_the_named_size_is_enough(folder: Path) -> None:
    sources = [source(folder, "a", [50, 50], weight=1), source(folder, "b", [4] * 99, weight=1)]
    pack_corpus(folder, Corpus(sources, "tokens", 100, "mix"))
    assert [one.documents > 0 for one in Manifest.read(folder / "out").sources] == [True, True]


def test_a_cap_that_no_document_fits(folder: Path) -> None:
    capped = source(folder, "a", [50, 4], max_tokens=49)
    message = (
        r"^source a gives no document: max_tokens is 49, and its first document has 50 tokens: raise max_tokens, or"
    )
    refused(folder, Corpus([capped, source(folder, "b", [4])]), message)
    weighted = [source(folder, "a", [50, 4], max_tokens=49, weight=1), source(folder, "b", [4] * 99, weight=1)]
    refused(folder, Corpus(weighted), message)


@pytest.mark.parametrize(
    ("keys", "reasons"),
    [
        ({"min_document_tokens": 9}, "3 are shorter than 9 tokens: change min_document_tokens, or leave"),
        ({"max_document_tokens": 3}, "3 are longer than 3 tokens: change max_document_tokens, or leave"),
        (
            {"min_document_tokens": 6, "max_document_tokens": 6},
            "1 are shorter than 6 tokens, 2 are longer than 6 tokens: change min_document_tokens, or change max",
        ),
        ({"min_document_tokens": 9, "weight": 1}, "3 are shorter than 9 tokens"),
        ({"min_document_tokens": 9, "max_documents": 2}, "3 are shorter than 9 tokens"),
    ],
)
def test_a_filter_that_leaves_nothing(folder: Path, keys: dict[str, Any], reasons: str) -> None:
    other = source(folder, "b", [4] * 9, **({"weight": 1} if "weight" in keys else {}))
    refused(
        folder,
        Corpus([source(folder, "a", [5, 7, 8], **keys), other]),
        f"source a gives no document: of its 3 documents, {reasons}",
    )


def test_all_documents_go_to_validation_only_if_they_do(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "a.txt").write_text("</s>")
    message = r"source a gives no document: of its 1 documents, 1 are shorter than two tokens: leave the source out"
    refused(folder, Corpus([CorpusSource(path="a")]), message)
    all_val = Corpus([source(folder, "b", [5], split="val")])
    refused(
        folder, all_val, r"1 documents were packed, and all went to validation: all sources have split = \"val\", give"
    )
