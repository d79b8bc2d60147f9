"""The properties of all policies, and the properties of each policy."""

from collections import defaultdict
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from exact_titan.dataset.policies import POLICIES, Segment, best_fit, lay_out

documents = st.lists(st.integers(1, 70), min_size=1, max_size=40)


def windows(policy: str, window: int, inputs: list[int]) -> list[list[Segment]]:
    return list(lay_out(policy, window, np.array(inputs) + 1))


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None, max_examples=200)
@given(inputs=documents, window=st.integers(1, 24))
def test_every_input_stands_in_one_window(policy: str, inputs: list[int], window: int) -> None:
    laid_out = windows(policy, window, inputs)
    assert all(1 <= sum(segment.inputs for segment in row) <= window for row in laid_out)
    segments = defaultdict(list)
    for row in laid_out:
        for segment in row:
            segments[segment.document].append(segment)
    assert sorted(segments) == list(range(len(inputs)))
    for document, parts in segments.items():
        assert parts[0].first == 0
        assert all(part.first + part.inputs == following.first for part, following in pairwise(parts))
        assert parts[-1].first + parts[-1].inputs == inputs[document]


@given(inputs=documents, window=st.integers(1, 24))
def test_concat_fills_all_windows_but_the_last_in_the_documents_order(inputs: list[int], window: int) -> None:
    laid_out = windows("concat", window, inputs)
    assert all(sum(segment.inputs for segment in row) == window for row in laid_out[:-1])
    segments = [segment for row in laid_out for segment in row]
    assert segments == sorted(segments)


def best_fit_decreasing(inputs: list[int], window: int) -> list[list[Segment]]:
    """The definition: the window with the least sufficient room. In a tie, the most recently used window."""
    laid_out, rests = [], []
    for document, length in enumerate(inputs):
        rest = length % window
        laid_out += [[Segment(document, first, window)] for first in range(0, length - rest, window)]
        rests += [Segment(document, length - rest, rest)] if rest else []
    filled: list[list[Segment]] = []
    recent: list[list[Segment]] = []
    for segment in sorted(rests, key=lambda rest: -rest.inputs):
        fitting = [row for row in recent if sum(part.inputs for part in row) + segment.inputs <= window]
        row = max(reversed(fitting), key=lambda row: sum(part.inputs for part in row), default=None)
        if row is None:
            row = []
            filled.append(row)
        else:
            recent = [other for other in recent if other is not row]
        row.append(segment)
        recent.append(row)
    return laid_out + [sorted(row) for row in filled]


@settings(deadline=None, max_examples=300)
@given(inputs=documents, window=st.integers(1, 24))
@example(inputs=[9, 9, 9], window=9)
@example(inputs=[70], window=8)
def test_best_fit_agrees_with_the_definition(inputs: list[int], window: int) -> None:
    laid_out = windows("best_fit", window, inputs)
    assert laid_out == best_fit_decreasing(inputs, window)
    for row in laid_out:
        for segment in row:
            assert segment.inputs == window or segment.first + segment.inputs == inputs[segment.document]
            assert segment.first % window == 0, "a document is cut into full windows and a rest"


@settings(deadline=None, max_examples=30)
@given(inputs=st.lists(st.integers(1, 4000), min_size=1, max_size=200), window=st.integers(1000, 5000))
def test_best_fit_agrees_with_the_definition_where_rooms_fill_several_words(inputs: list[int], window: int) -> None:
    assert windows("best_fit", window, inputs) == best_fit_decreasing(inputs, window)


def test_best_fit_by_hand() -> None:
    # Longest first: 7, 6 and 5 open windows with room for 1, 2 and 3. The rest of 19, then 2 and 1 fill the windows.
    rows = windows("best_fit", 8, [2, 5, 19, 6, 7, 1])
    assert rows == [
        [(2, 0, 8)],
        [(2, 8, 8)],
        [(4, 0, 7), (5, 0, 1)],
        [(0, 0, 2), (3, 0, 6)],
        [(1, 0, 5), (2, 16, 3)],
    ]


@pytest.mark.parametrize(("inputs", "number"), [(60, 10**9), (10**9, 4)])
def test_best_fits_buffer_is_bounded(monkeypatch: pytest.MonkeyPatch, inputs: int, number: int) -> None:
    monkeypatch.setattr(best_fit, "BUFFER_INPUTS", inputs)
    monkeypatch.setattr(best_fit, "BUFFER_DOCUMENTS", number)
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 100, 500).tolist()
    policy = POLICIES["best_fit"](16)
    laid_out = []
    for added, length in enumerate(lengths, start=1):
        laid_out += list(policy.add(length))
        waiting = sum(lengths[:added]) - sum(segment.inputs for row in laid_out for segment in row)
        complete = {s.document for row in laid_out for s in row if s.first + s.inputs == lengths[s.document]}
        assert waiting < inputs
        assert added - len(complete) < number
    laid_out += list(policy.finish())
    assert sum(segment.inputs for row in laid_out for segment in row) == sum(lengths)
