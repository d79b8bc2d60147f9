"""JSON values and the types of dataclasses and typed dictionaries."""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import pytest

from exact_titan.errors import InputError
from exact_titan.system.typed_values import TYPES_ALONE, WHOLE_RECORD, Rules, fits, parse_typed, wrong_value


@dataclass
class Inner:
    number: int


@dataclass
class Outer:
    name: str
    inner: Inner | None = None
    more: dict[str, Any] = field(default_factory=dict)


@dataclass
class Lists:
    numbers: tuple[int, ...]
    inner: list[Inner]
    named: dict[str, Inner]
    either: int | Inner


class Section(TypedDict, total=False):
    steps: int
    inside: "Section"


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
        ({"steps": 3, "another": "x"}, Section),
        (object(), Any),
        ("a\udcff", str),
    ],
)
def test_values_of_the_type(value, hint):
    assert fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (True, Literal[1]),
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
        ([], Section),
    ],
)
def test_values_of_another_type(value, hint):
    assert not fits(value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "message"),
    [
        ({"name": "a", "inner": {"number": None}}, Outer, "key 'inner.number' is None: it must be an integer"),
        ({"steps": 1, "inside": {"steps": True}}, Section, "key 'inside.steps' is True: it must be an integer"),
        ({"named": {"a": {"number": "1"}}}, Lists, "key 'named.a.number' is '1': it must be an integer"),
        ({"inner": [{"number": 1}, 7]}, Lists, "key 'inner[1]' is 7: it must be an object"),
        ({"numbers": {}}, Lists, "key 'numbers' is {}: it must be a list"),
        ({"either": "x"}, Lists, "key 'either' is 'x': it must be an integer or an object"),
        ("first", Literal["last", "ema"], "the content is 'first': it must be one of 'last', 'ema'"),
        ({"name": ["a" * 100]}, Outer, f"key 'name' is ['{'a' * 58}: it must be a string"),
        (2**63, int, f"the content is {2**63}: it must be from -2^63 to 2^63 - 1"),
        (10**400, int, "the content is a number of 1329 bits: it must be from -2^63 to 2^63 - 1"),
    ],
)
def test_the_first_wrong_value_is_named_by_its_key(value, hint, message):
    assert wrong_value(value, hint) == message


@pytest.mark.parametrize(
    ("value", "rules", "message"),
    [
        ({"inner": None}, WHOLE_RECORD, "key 'name' is missing"),
        ({"name": "a", "inner": {}}, WHOLE_RECORD, "key 'inner.number' is missing"),
        ({"name": "a", "inner": {"number": 1, "x": 1}}, WHOLE_RECORD, "key 'inner.x' is unknown"),
        (
            {"inner": {"number": -1}},
            Rules(may_lack=TYPES_ALONE.may_lack, other_names=True, least=0),
            "key 'inner.number' is -1: it must be from 0 to 2^63 - 1",
        ),
        (
            {"name": "\udcff"},
            Rules(may_lack=TYPES_ALONE.may_lack, other_names=True, only_unicode=True),
            "key 'name' has '\\udcff', which is not Unicode text",
        ),
    ],
)
def test_the_rules_of_a_file(value, rules, message):
    assert wrong_value(value, Outer, rules=rules) == message
    assert rules == WHOLE_RECORD or fits(value, Outer)


def test_a_value_becomes_its_dataclass():
    value = {"numbers": [1, 2], "inner": [{"number": 3}], "named": {"a": {"number": 4}}, "either": {"number": 5}}
    made = parse_typed(Lists, value, "file", way_out="copy the file again", rules=WHOLE_RECORD)
    assert made == Lists((1, 2), [Inner(3)], {"a": Inner(4)}, Inner(5))
    with pytest.raises(
        InputError, match=r"^file: key 'either' is 'x': it must be an integer or an object: copy the file again$"
    ):
        parse_typed(Lists, value | {"either": "x"}, "file", way_out="copy the file again", rules=WHOLE_RECORD)
