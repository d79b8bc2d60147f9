"""A passage in running text, at an exact distance from the end of the prompt."""

import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.haystacks import Prose, read_texts
from exact_titan.evaluation.suites.probe.placing import Filler, Frame
from tests.evaluation.tokenizers import letters_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def prose(tokenizer):
    return Prose(read_texts(None, tokenizer).texts[:2], tokenizer)


@pytest.fixture(scope="module")
def frame(tokenizer):
    return Frame(tokenizer, "The violin is kept by Anna.", "Who keeps the violin?", " It is kept by")


@pytest.mark.parametrize("distance", [64, 128, 200, 1000, 1024])
@pytest.mark.parametrize("start", [0, 17, 2000])
def test_the_distance_is_exact(tokenizer, prose, frame, distance, start):
    filler = Filler(prose, start, 2048)
    after = filler.after(frame, distance)
    prompt = frame.prompt(filler.before(100), after)
    beginning, end = prompt.split("The violin is kept by Anna.")
    assert tokenizer.count(end) == distance
    assert after in end
    assert " ".join(prose.words * 3).split(after)[0].rstrip()[-1] in ".!?”’"
    assert beginning.split()[:20] == (prose.words[start:] + prose.words[:start])[:20]
    assert after not in beginning


def test_the_text_repeats_when_it_is_too_short(tokenizer, frame):
    prose = Prose(["One two. Three four five."], tokenizer)
    filler = Filler(prose, 2, 300)
    assert filler.before(7) == "Three four five. One two. Three four"
    assert filler.names == {"One", "two", "Three", "four", "five"}
    assert abs(frame.distance(filler.after(frame, 128)) - 128) <= 1


def test_a_haystack_without_spaces_is_refused(tokenizer, frame):
    filler = Filler(Prose(["word." * 200, "long." * 300], tokenizer), 0, 2048)
    with pytest.raises(InputError, match=r"a distance of 256 tokens only with an error of .* spaces between its words"):
        filler.after(frame, 256)
