from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

from exact_titan.documents import long_texts, tokenizer
from exact_titan.documents.special_tokens import SpelledTokens
from exact_titan.documents.tokenizer import DocumentTokenizer

BYTES = {letter: number for number, letter in enumerate(sorted(ByteLevel.alphabet()))}
END, START, MIDDLE = 256, 257, 258


def letters(text: str) -> list[int]:
    """Return the ids of a byte-level tokenizer without merges."""
    (piece, _), *_ = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(text) or [("", None)]
    return [BYTES[letter] for letter in piece]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer that adds <s>. Its end-of-text token and <|middle|> are not marked as special."""
    plain = Tokenizer(models.BPE(BYTES, []))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    plain.add_tokens([AddedToken("<|end_of_text|>", normalized=False)])
    plain.add_special_tokens(["<s>"])
    plain.add_tokens([AddedToken("<|middle|>", normalized=False), AddedToken("<b>", normalized=False)])
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    plain.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


TEXT = "a<|end_of_text|> <s>b<|middle|>"


def test_a_spelled_special_token_stays_text(folder: Path) -> None:
    (found,) = DocumentTokenizer(folder).encode([TEXT])
    assert found.tolist() == [START, *letters(TEXT), END]


def test_a_spelled_special_token_becomes_its_id(folder: Path) -> None:
    (found,) = DocumentTokenizer(folder, special_tokens="ids").encode([TEXT])
    assert found.tolist() == [START, *letters("a"), END, *letters(" "), START, *letters("b"), MIDDLE, END]


def test_an_added_token_that_is_no_control_token_keeps_its_id(folder: Path) -> None:
    for mode in ("text", "ids"):
        packed = DocumentTokenizer(folder, special_tokens=mode)  # type: ignore[arg-type]
        assert packed.encode(["<b>"])[0].tolist() == [START, 259, END]
        assert not packed.spells_special("<b> <|x|> <|middle")
        assert all(packed.spells_special(f"a {token}") for token in ("<s>", "<|middle|>", "<|end_of_text|>"))


@pytest.mark.parametrize("long", [2**20, 4])
def test_the_start_and_the_end_of_a_text_are_not_doubled(
    folder: Path, monkeypatch: pytest.MonkeyPatch, long: int
) -> None:
    monkeypatch.setattr(tokenizer, "LONG", long)
    monkeypatch.setattr(long_texts, "LONG", long)
    packed = DocumentTokenizer(folder, special_tokens="ids")
    found = [ids_m.tolist() for ids_m in packed.encode(["<s>abcdef<|end_of_text|>", "<s><s>abcdef"])]
    assert found == [[START, *letters("abcdef"), END], [START, START, *letters("abcdef"), END]]
    (as_text,) = DocumentTokenizer(folder).encode(["<s>abcdef"])
    assert as_text.tolist() == [START, *letters("<s>abcdef"), END]


def test_tokens_that_are_spelled() -> None:
    spelled = SpelledTokens(["</s>", "[CLS]", "<|a|>", "<|b.|>", ""])
    assert [spelled.are_in(text) for text in ("x</s>", "[CLS]", "<|a|>b", "<|b.|>")] == [True] * 4
    assert not any(map(spelled.are_in, ("</p>", "[CL", "<|ab|>", "<|bx|>", "")))
