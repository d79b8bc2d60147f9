import contextlib
import io
import sys
import unicodedata
from collections.abc import Iterator
from typing import TextIO

import pytest
from tqdm import tqdm

from exact_titan.system import terminal

EVIL = "\x1b[2J\x1b]52;c;ZWNobw==\x07\x9b31m\u202etxet\u2066\u200f\u061c\u2028\r\x7f\udcff\U000e0041"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@contextlib.contextmanager
def shown_on(stream: TextIO) -> Iterator[None]:
    """Guard a stream in the place of standard output and standard error."""
    with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream), terminal.guarded():
        yield


def test_no_character_that_a_terminal_obeys_is_left() -> None:
    planes = (*range(0x10000), *range(0xE0000, 0xE0200))
    left = set(terminal.escape("".join(map(chr, planes))))
    obeyed = {"Cc", "Cs", "Zl", "Zp", "LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}
    found = {one for one in left if {unicodedata.category(one), unicodedata.bidirectional(one)} & obeyed}
    assert found == {"\n", "\t"}
    assert not left & {"\u200e", "\u200f", "\u061c", "\U000e0001", "\U000e007f"}


def test_ordinary_text_stays() -> None:
    text = "naïve 文字 🏳️‍🌈 עברית ไทย\u200b 5\u00a0% \\x1b …\n\tend"
    assert terminal.escape(text) == text
    assert terminal.escape(terminal.escape(EVIL)) == terminal.escape(EVIL)


def test_the_escapes_are_those_of_python() -> None:
    assert terminal.escape("\x1b[2J\x9b\u202e\udcff\U000e0041\r\n") == "\\x1b[2J\\x9b\\u202e\\udcff\\U000e0041\\r\n"
    assert terminal.one_line("a\nb\tc") == "a\\nb\\tc"


def test_a_guarded_process_writes_no_such_character() -> None:
    screen = Screen()
    with shown_on(screen):
        guard = sys.stdout
        print(EVIL, "name")
        print(EVIL, file=sys.stderr)
        sys.stdout.writelines([EVIL, "\n"])
    assert screen.getvalue().splitlines()[0] == f"{terminal.escape(EVIL)} name"
    assert screen.getvalue().count(terminal.escape(EVIL)) == 3
    assert terminal.escape(screen.getvalue()) == screen.getvalue()
    assert sys.stdout is not guard


def test_a_progress_bar_and_lines_above_it_stay_as_they_are() -> None:
    def draw() -> None:
        with tqdm(total=3, file=sys.stdout, bar_format="{n_fmt} {bar:5}", mininterval=0, leave=False) as bar:
            for _ in range(3):
                bar.update()
                tqdm.write("line", file=sys.stdout)

    bare, guarded = Screen(), Screen()
    with contextlib.redirect_stdout(bare):
        draw()
    with shown_on(guarded):
        draw()
    assert guarded.getvalue() == bare.getvalue()
    assert "\r" in bare.getvalue()


def test_own_colors_pass() -> None:
    screen = Screen()
    with shown_on(screen), terminal.unguarded():
        print("\x1b[1mhelp\x1b[0m")
    assert screen.getvalue() == "\x1b[1mhelp\x1b[0m\n"


def test_a_character_that_the_encoding_lacks_is_an_escape() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii")
    with shown_on(stream):
        print("0 … 7 \udcff", flush=True)
    assert raw.getvalue() == b"0 \\u2026 7 \\udcff\n"


def test_a_closed_stream_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    with terminal.guarded():
        print("nowhere")


def test_an_error_of_standard_output_names_it_until_the_errors_are_dropped() -> None:
    with open("/dev/full", "wb", buffering=0) as full, shown_on(io.TextIOWrapper(full)):
        with pytest.raises(OSError, match="No space left") as caught:
            print("x", flush=True)
        assert caught.value.filename == terminal.STANDARD_OUTPUT
        print("x", file=sys.stderr, flush=True)
        terminal.drop_output_errors()
        print("x", flush=True)
        terminal.give_up_output()
