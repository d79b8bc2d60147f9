"""JSON values and the types of dataclasses."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from exact_titan.system.typed_values import fits, wrong_field


@dataclass
class Inner:
    number: int


@dataclass
class Outer:
    name: str
    inner: Inner | None = None
    more: dict[str, Any] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (3, int),
        (3, float),
        (float("nan"), float),
        (True, bool),
        (None, int | None),
        ([1, 2], tuple[int, ...]),
        ({"a": [1]}, dict[str, list[int]]),
        ("last", Literal["last", "ema"]),
        ({"name": "a", "inner": {"number": 1}}, Outer),
        ({"another": 1}, Outer),
        (object(), Any),
    ],
)
def test_values_of_the_type(value, hint):
    assert fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (2**63, int),
        (-(2**70), float),
        (1.5, int),
        ("3", int),
        (None, str),
        ("x", int | None),
        ([1, "2"], tuple[int, ...]),
        ("12", tuple[str, ...]),
        ({"a": 1}, dict[str, str]),
        ("first", Literal["last", "ema"]),
        ([["last"]], Literal["last"]),
        ({"name": 3}, Outer),
        ({"inner": {"number": "1"}}, Outer),
    ],
)
def test_values_of_another_type(value, hint):
    assert not fits(value, hint)


def test_the_wrong_field_is_named():
    assert wrong_field(Outer, {"name": "a", "inner": None, "more": {"x": []}}) is None
    assert wrong_field(Outer, {"name": "a", "inner": {"number": None}}) == "inner is {'number': None}"
