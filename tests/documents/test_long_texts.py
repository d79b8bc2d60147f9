import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from exact_titan.documents import long_texts, tokenizer
from exact_titan.documents.long_texts import encode_long
from exact_titan.documents.tokenizer import DocumentTokenizer

pytest_plugins = ["tests.text_fixtures"]

WORDS = [
    "fox",
    "the",
    "quick",
    "東京",
    "Größe",
    "f(x):",
    "\n\n",
    "   ",
    "lazy",
    "<end>",
    "don't",
    "e\u0301te",
    "\t",
    "1234",
]


def mixed_text(words: int, seed: int) -> str:
    draw = random.Random(seed)
    return "".join(word + draw.choice([" ", " ", " ", "", "\n"]) for word in draw.choices(WORDS, k=words))


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LONG", 1000), ("OVERLAP", 400)):
        monkeypatch.setattr(long_texts, name, value)
    monkeypatch.setattr(tokenizer, "LONG", 1000)


@pytest.mark.parametrize("seed", range(8))
def test_pieces_give_the_ids_of_the_whole(short_pieces: None, bpe_tokenizer: Path, seed: int) -> None:
    text = mixed_text(3000, seed)
    whole = Tokenizer.from_file(str(bpe_tokenizer / "tokenizer.json"))
    found = encode_long(whole, text)
    assert found is not None
    assert found.tolist() == whole.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("end", ["", "<end>"])
def test_a_document_is_the_same_with_its_special_tokens(
    short_pieces: None, bpe_tokenizer: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    texts = [mixed_text(10, 0), mixed_text(1000, 1) + end, mixed_text(2000, 2) + end]
    in_pieces = DocumentTokenizer(bpe_tokenizer).encode(texts)
    monkeypatch.setattr(tokenizer, "LONG", 10**9)
    for found, whole in zip(in_pieces, DocumentTokenizer(bpe_tokenizer).encode(texts), strict=True):
        assert found.dtype == whole.dtype
        np.testing.assert_array_equal(found, whole)


def test_a_tokenizer_that_looks_over_the_spaces_takes_the_whole(short_pieces: None, tmp_path: Path) -> None:
    """A tokenizer like SentencePiece: it puts a mark before every text, and merges tokens across spaces."""
    marked = Tokenizer(models.BPE(unk_token="</s>"))
    marked.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], show_progress=False)
    marked.train_from_iterator([mixed_text(2000, 3)], trainer)
    marked.save(str(tmp_path / "tokenizer.json"))
    text = mixed_text(1500, 4)
    assert encode_long(marked, text) is None
    (found,) = DocumentTokenizer(tmp_path).encode([text])
    assert found[:-1].tolist() == marked.encode(text).ids


def test_a_text_without_spaces_is_one_piece(short_pieces: None, bpe_tokenizer: Path) -> None:
    whole = Tokenizer.from_file(str(bpe_tokenizer / "tokenizer.json"))
    assert encode_long(whole, "東京" * 2000) is None
    short = encode_long(whole, "東京" * 100)
    assert short is not None
    assert short.tolist() == whole.encode("東京" * 100, add_special_tokens=False).ids


def test_words_of_a_word_tokenizer(short_pieces: None, word_tokenizer: Path) -> None:
    whole = Tokenizer.from_file(str(word_tokenizer / "tokenizer.json"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = " ".join(random.Random(0).choices(["17", "a", "b", "5", "x"], k=4000))
    found = encode_long(whole, text)
    assert found is not None
    assert found.tolist() == whole.encode(text).ids
