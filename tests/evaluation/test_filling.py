"""Prompts that are filled up to their length."""

import numpy as np
import pytest

from exact_titan.errors import InputError
from exact_titan.evaluation.filling import PromptDoesNotFit, fill
from tests.evaluation.tokenizers import letters_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return letters_tokenizer(tmp_path_factory.mktemp("tokenizer"))


class Counting:
    """Renders pieces of known sizes, and counts the calls."""

    def __init__(self, *words):
        self.words, self.calls = words, 0

    def __call__(self, pieces):
        self.calls += 1
        return "Ask" + "".join(f" {word}" for word in self.words[:pieces]) + " now"


def filled(render, sizes, tokenizer, **changes):
    given = {"task": "ruler/toy", "length": 1000, "room": 100}
    return fill(render, sizes, tokenizer=tokenizer, **given | changes)


@pytest.mark.parametrize("wrong", [0.25, 0.9, 1, 1.1, 4])
def test_the_prompt_is_full_although_the_sizes_are_only_approximate(tokenizer, wrong):
    render = Counting(*["word"] * 5000)
    result = filled(render, np.full(5000, wrong) * 4, tokenizer)
    assert 0.995 * 900 <= result.tokens <= 900
    assert result.tokens == tokenizer.count(result.prompt) == result.pieces + 2
    assert render.calls <= 8


def test_exact_sizes_need_two_counts(tokenizer):
    render = Counting(*["word"] * 5000)
    assert filled(render, [1] * 5000, tokenizer).tokens == 900
    assert render.calls == 2


def test_a_prompt_that_does_not_fit_is_refused_with_the_numbers(tokenizer):
    with pytest.raises(PromptDoesNotFit, match=r"ruler/toy: a length of 50 .* shortest prompt has 7 .* 107 or more"):
        filled(Counting(*["word"] * 9), [1] * 9, tokenizer, length=50, fewest=5)
    assert filled(Counting(*["word"] * 9), [1] * 9, tokenizer, length=107, fewest=5).pieces == 5


def test_a_haystack_that_is_too_short_is_refused(tokenizer):
    with pytest.raises(InputError, match="fills only 802 of 900 tokens: name a haystack with more text"):
        filled(Counting(*["word"] * 800), [1] * 800, tokenizer)


def test_pieces_that_are_too_large_are_refused_unless_any_share_is_allowed(tokenizer):
    large = Counting(*["word" * 300] * 9)
    with pytest.raises(InputError, match="2 pieces fill only 602 of 900 tokens, and the next piece does not fit"):
        filled(large, [300] * 9, tokenizer)
    assert filled(large, [300] * 9, tokenizer, least=0).tokens == 602
