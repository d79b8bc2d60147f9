from fractions import Fraction
from pathlib import Path

import pytest

from exact_titan.errors import InputError
from exact_titan.sampling.dataset_path import Entry, join, parse


def test_one_folder():
    assert parse("packed/web") == [Entry(Path("packed/web"))]


def test_several_with_weights_which_are_exact():
    entries = parse("packed/web=3, packed/math=0.1,b=1/3,packed/x=y=.5")
    assert entries == [
        Entry(Path("packed/web"), Fraction(3)),
        Entry(Path("packed/math"), Fraction(1, 10)),
        Entry(Path("b"), Fraction(1, 3)),
        Entry(Path("packed/x=y"), Fraction(1, 2)),
    ]
    assert parse(join(entries)) == entries


def test_several_without_weights():
    assert parse("a,b") == [Entry(Path("a")), Entry(Path("b"))]
    assert join(parse("a,b")) == "a,b"


@pytest.mark.parametrize("name", ["lr=3", "a,b", "a=1,b=2"])
def test_a_folder_of_that_name_is_that_folder(tmp_path, name):
    (tmp_path / name).mkdir()
    assert parse(str(tmp_path / name)) == [Entry(tmp_path / name)]


def test_a_folder_with_an_equals_sign_among_several(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("lr=3").mkdir()
    assert parse("lr=3=2,a=1") == [Entry(Path("lr=3"), Fraction(2)), Entry(Path("a"), Fraction(1))]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a=0,b=0", "the weights sum to 0"),
        ("a=0.0,b=1", "a has the weight 0, write a=NUMBER or leave it out"),
        ("a=3,b", "b has no weight, write b=NUMBER"),
        ("a=3,,b=1", "'a=3,,b=1': a name is missing"),
        ("a=3,=1", "'1' is no weight|there is no folder =1"),
        ("a=three,b=1", "there is no folder a=three, and 'three' is no weight: write it as 3, 0.25 or 1/3"),
        ("a=-1,b=1", "'-1' is no weight"),
        ("a=1/0,b=1", "'1/0' is no weight"),
        ("a=1e999999999,b=1", "'1e999999999' is no weight"),
        ("a=nan,b=1", "'nan' is no weight"),
    ],
)
def test_a_mistake_is_one_line(text, message):
    with pytest.raises(InputError, match=message) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
