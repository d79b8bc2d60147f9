"""Prose haystacks: texts, sentences, and needles between the sentences."""

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.haystacks import Prose, ends_sentence, read_texts, sentences_of
from tests.evaluation.tokenizers import letters_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def test_the_default_haystack_is_public_domain_chapters(tokenizer):
    texts = read_texts(None, tokenizer)
    assert texts.names[:2] == ("Pride and Prejudice, chapter 1", "David Copperfield, chapter 1")
    assert "It is a truth universally acknowledged" in texts.texts[0]
    assert sum(map(len, texts.texts)) > 500_000
    assert "public-domain chapters" in texts.note
    assert "not comparable" in texts.note


def test_a_folder_of_texts_is_read_in_the_order_of_names(tokenizer, tmp_path):
    (tmp_path / "b.txt").write_text("Second.")
    (tmp_path / "a.txt").write_text("First.")
    (tmp_path / "notes.md").write_text("no haystack")
    texts = read_texts(tmp_path, tokenizer)
    assert (texts.names, texts.texts) == (("a.txt", "b.txt"), ("First.", "Second."))
    assert tmp_path.name in texts.note
    (tmp_path / "b.txt").write_text("Changed.")
    assert read_texts(tmp_path, tokenizer).sha256 != texts.sha256


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9 au lait", "a.txt is not UTF-8"),
        ("a.txt", b"Fine.</s>", r"a.txt: the text spells the special token </s>"),
        ("a.txt", b"  \n", "has no text in .txt files"),
        ("a.md", b"Fine.", "has no text in .txt files"),
    ],
)
def test_a_wrong_folder_is_named(tokenizer, tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_texts(tmp_path, tokenizer)


def test_a_missing_folder_is_named(tokenizer, tmp_path):
    with pytest.raises(InputError, match="absent: no such folder"):
        read_texts(tmp_path / "absent", tokenizer)


def test_sentences():
    text = "“Is Mr. Bennet in?” said J. Smith. Yes!  So am I.\nNo"
    assert sentences_of(text) == ["“Is Mr. Bennet in?”", "said J. Smith.", "Yes!", "So am I.", "No"]
    assert not ends_sentence("Mr.")


def test_needles_stand_between_sentences_at_their_depth(tokenizer):
    prose = Prose(["One two. Three four.", "Five six."], tokenizer)
    assert prose.with_needles(6, []) == "One two. Three four. Five six."
    assert prose.with_needles(6, [(0.0, "X.")]) == "X. One two. Three four. Five six."
    assert prose.with_needles(6, [(1.0, "X.")]) == "One two. Three four. Five six. X."
    assert prose.with_needles(6, [(0.7, "Y."), (0.4, "X.")]) == "One two. X. Three four. Y. Five six."
    # The last sentence may be incomplete. The words repeat.
    assert prose.with_needles(3, [(0.5, "X.")]) == "One two. X. Three"
    assert prose.with_needles(8, [(0.8, "X.")]) == "One two. Three four. Five six. X. One two."
    assert prose.with_needles(0, [(0.5, "X.")]) == "X."


def test_the_sizes_repeat_with_the_words(tokenizer):
    prose = Prose(["One two. Three"], tokenizer)
    assert prose.sizes.tolist() == [1, 2, 2]
    sizes = prose.sizes_up_to(12)
    assert sizes.sum() >= 12
    assert sizes.tolist()[:6] == [1, 2, 2, 1, 2, 2]
