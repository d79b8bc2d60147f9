"""Text for a terminal: control characters and bidirectional marks of foreign text become visible escapes.

A document, a name, a path or a message of a library may hold characters that a terminal obeys: an escape sequence that
clears the screen, a mark that reverses the reading direction, a carriage return that overwrites the line. Every entry
point puts :func:`guarded` around its work. The guard escapes the characters in everything that the process writes to
standard output and standard error: prints, log lines, warnings, tracebacks, and the output of libraries. No other code
needs to remember the escapes.

A character becomes its escape in Python's notation, such as ``\\x1b`` or ``\\u202e``. Backslashes stay as they are, so
escaped text does not change when it is escaped again.
"""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

STANDARD_OUTPUT = "standard output"
"""``filename`` of an OSError whose file is standard output."""

_KEPT = "\n\t"
_RANGES = (
    ("\x00", "\x1f"),  # C0 controls, with the escape character
    ("\x7f", "\x9f"),  # delete, and the C1 controls: \x9b alone starts an escape sequence
    ("\u061c", "\u061c"),  # Arabic letter mark
    ("\u200e", "\u200f"),  # left-to-right mark, right-to-left mark
    ("\u2028", "\u202e"),  # line and paragraph separator, embeddings and overrides of the direction
    ("\u2066", "\u206f"),  # isolates of the direction, deprecated format characters
    ("\ud800", "\udfff"),  # lone surrogates: the bytes of a file name that is not UTF-8
    ("\ufff9", "\ufffb"),  # interlinear annotations
    ("\U000e0000", "\U000e007f"),  # tags: invisible copies of the ASCII characters
)
_UNSAFE = re.compile("[" + "".join(f"{re.escape(first)}-{re.escape(last)}" for first, last in _RANGES) + "]")


def escape(text: str) -> str:
    """Return text of any number of lines with visible escapes. Line breaks and tabs stay."""
    return _UNSAFE.sub(lambda found: found[0] if found[0] in _KEPT else _escaped(found[0]), text)


def one_line(text: str) -> str:
    """Return a name, or a line of a table, with visible escapes. Line breaks and tabs become escapes as well."""
    return _UNSAFE.sub(lambda found: _escaped(found[0]), text)


def print_lines(lines: Iterable[str]) -> None:
    """Print each line at once. A name with a line break stays on its line."""
    for line in lines:
        print(one_line(line), flush=True)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class GuardedStream:
    """A text stream that escapes what is written to it. All other attributes are those of the stream.

    A text may start with a carriage return: a progress bar starts every line that it draws again with one. At this
    place the character overwrites nothing but the bar.

    Args:
        stream: the stream.
        name: name of the stream in errors.
        lossy: whether the text that cannot be written is dropped.

    Attributes:
        escapes: whether the stream escapes at all.
    """

    def __init__(self, stream: TextIO, name: str, *, lossy: bool) -> None:
        self._stream, self._name = stream, name
        self.lossy = lossy
        self.escapes = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write the escaped text.

        Raises:
            OSError: with the name of the stream as file name, unless the stream is lossy.
        """
        start = text[: text.startswith("\r")]
        with self._naming():
            self._stream.write(start + escape(text[len(start) :]) if self.escapes else text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write the escaped lines."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Write the buffered text, with the errors of :meth:`write`."""
        with self._naming():
            self._stream.flush()

    @contextlib.contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self.lossy:
                # The class follows from the number, such as BrokenPipeError.
                raise OSError(error.errno, error.strerror, self._name) from None


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Escape everything that is written to standard output and standard error.

    - A character that the encoding of the terminal lacks becomes an escape, too.
    - Text for standard error that cannot be written is dropped: there is no other place for a complaint.
    """
    before = sys.stdout, sys.stderr
    # Python 3.13 colours tracebacks on a terminal. The guard would show the colours as escapes.
    os.environ.setdefault("PYTHON_COLORS", "0")
    for stream in before:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    # A closed stream is None.
    if sys.stdout is not None:
        sys.stdout = GuardedStream(sys.stdout, STANDARD_OUTPUT, lossy=False)
    if sys.stderr is not None:
        sys.stderr = GuardedStream(sys.stderr, "standard error", lossy=True)
    try:
        yield
    except Exception:
        # Python prints the traceback of an uncaught exception later, and a message may quote a file.
        sys.excepthook = functools.partial(_show_guarded, sys.excepthook)
        raise
    finally:
        sys.stdout, sys.stderr = before


def _show_guarded(show: Callable[..., object], *error: object) -> None:
    with guarded():
        show(*error)


@contextlib.contextmanager
def unguarded() -> Iterator[None]:
    """Write to standard output without escapes. Only for the package's own text with its own colours, such as help."""
    stream = sys.stdout
    if not isinstance(stream, GuardedStream):
        yield
        return
    stream.escapes = False
    try:
        yield
    finally:
        stream.escapes = True


def drop_output_errors() -> None:
    """Drop text for standard output that cannot be written from now on.

    A run of hours does not end because its terminal is closed, or because the disk of its log is full.
    """
    if isinstance(sys.stdout, GuardedStream):
        sys.stdout.lossy = True


def give_up_output() -> None:
    """Send the rest of standard output to nowhere. Python would complain at its exit about the buffered text."""
    with contextlib.suppress(OSError, AttributeError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
