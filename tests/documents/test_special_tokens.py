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


def unigram() -> Tokenizer:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -3.0) for letter in "ab</s>")]
    return Tokenizer(models.Unigram(pieces, unk_id=0))


def words(model: type) -> Tokenizer:
    tokenizer = Tokenizer(model({"<unk>": 0, "</s>": 1, "a": 2, "b": 3}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def bpe(merges: list[tuple[str, str]], *, ignore_merges: bool) -> Tokenizer:
    vocabulary = {text: number for number, text in enumerate(["?", "</s>", "a", "b", "<", "/", "s", ">", "</", "s>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.mark.parametrize(
    ("plain", "text", "ids"),
    [
        (unigram(), "a</s>b", [2, 4, 5, 6, 7, 3]),
        (words(models.WordLevel), "a </s> b", [2, 0, 3]),
        (words(models.WordPiece), "a </s> b", [2, 0, 3]),
        (bpe([], ignore_merges=True), "a </s> b", [2, 4, 5, 6, 7, 3]),
        (bpe([("<", "/"), ("s", ">"), ("</", "s>")], ignore_merges=False), "a</s> b", [2, 8, 9, 3]),
    ],
    ids=["Unigram", "WordLevel", "WordPiece", "BPE with ignore_merges", "BPE with merges of the token"],
)
def test_a_model_does_not_find_its_special_token_in_the_letters(
    tmp_path: Path, plain: Tokenizer, text: str, ids: list[int]
) -> None:
    plain.add_special_tokens(["</s>"])
    plain.save(str(tmp_path / "tokenizer.json"))
    packed = DocumentTokenizer(tmp_path)
    assert packed.encode([text])[0].tolist() == [*ids, 1]
    assert DocumentTokenizer(tmp_path, special_tokens="ids").encode_letters(text) == ids
    assert packed.encode(["a b"])[0].tolist()[-1] == 1
    assert packed.spells_special(text)
