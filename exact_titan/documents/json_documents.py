"""Read JSON objects: one per line, or the values of one array, or values over several lines.

An error carries the line of the file.
"""

import codecs
import json
from collections.abc import Iterable, Iterator
from io import BufferedReader
from itertools import chain
from typing import Any

import orjson

from exact_titan.errors import InputError

CHUNK = 2**20
_BOM = b"\xef\xbb\xbf"
_COMPRESSED = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}


def read_lines(lines: Iterable[bytes], shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the line, from 1; object) of every line that is not blank.

    Raises:
        InputError: if a line is not a JSON object. The error names the file as ``shown``, and the line.
    """
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line.removeprefix(_BOM) if number == 1 else line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"{shown}, line {number}: {_why_not_json(line, error, number)}") from error
        yield number, _object(value, shown, number)


def read_any(stream: BufferedReader, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, object) of a ``.json`` file: lines, one array, or objects over several lines.

    The number is the line on which the object begins. Memory holds about one object at a time.

    Raises:
        InputError: in the cases of :func:`read_lines`; also if an array has no end.
    """
    start = stream.peek(64)[:64].removeprefix(_BOM)
    if start.lstrip()[:1] == b"[":
        yield from _Values(_chunks(stream), shown)
        return
    first = stream.readline()
    try:
        orjson.loads(first.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        yield from _Values(chain([first], _chunks(stream)), shown)
    else:
        yield from read_lines(chain([first], stream), shown)


def _chunks(stream: BufferedReader) -> Iterator[bytes]:
    return iter(lambda: stream.read(CHUNK), b"")


class _Values:
    """The objects of one array, or objects one after another, from chunks of bytes."""

    def __init__(self, chunks: Iterator[bytes], shown: str) -> None:
        self._chunks, self._shown = chunks, shown
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._scan = json.JSONDecoder().raw_decode
        self._text, self._at = "", 0
        self._lines = 1  # number of the line on which _text begins

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._next() != "[":
            while self._next():
                yield self._value()
            return
        self._at += 1
        if self._next() != "]":
            yield self._value()
            while self._next() == ",":
                self._at += 1
                yield self._value()
        if self._next() != "]":
            raise self._wrong(
                "the array is cut short" if not self._next() else "not JSON (, or ] is missing)", self._at
            )
        self._at += 1
        if self._next():
            raise self._wrong("not JSON (text after the end of the array)", self._at)

    def _next(self) -> str:
        """Return the next character that is not white space, or an empty text at the end."""
        while True:
            while self._at < len(self._text):
                if not self._text[self._at].isspace():
                    return self._text[self._at]
                self._at += 1
            if not self._more(CHUNK):
                return ""

    def _more(self, size: int) -> bool:
        """Read at least ``size`` bytes, and forget the text before the position. Return whether there was more."""
        read = []
        while size > 0 and (chunk := next(self._chunks, b"")):
            read.append(chunk)
            size -= len(chunk)
        self._lines += self._text.count("\n", 0, self._at)
        try:
            more = self._decoder.decode(b"".join(read), final=not read)
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self._shown}, after line {self._lines}: not UTF-8 ({error.reason}): convert the file to UTF-8"
            ) from error
        self._text, self._at = self._text[self._at :] + more, 0
        return bool(read)

    def _value(self) -> tuple[int, dict[str, Any]]:
        if self._next() != "{":
            what = "not a JSON object: a document must be a JSON object" if self._next() else "the file is cut short"
            raise self._wrong(what, self._at)
        size = CHUNK
        while True:
            try:
                _, end = self._scan(self._text, self._at)
                break
            except RecursionError as error:
                raise self._wrong("not JSON (nested too deeply)", self._at) from error
            except json.JSONDecodeError as error:
                # The object may only be incomplete so far. The position of an open string is the start of the string.
                incomplete = error.msg.startswith("Unterminated string") or error.pos >= len(self._text) - 16
                behind = error.pos - self._at
                if not incomplete or not self._more(size):
                    raise self._wrong(f"not JSON ({error.msg})", self._at + behind) from error
                size *= 2
        number = self._lines + self._text.count("\n", 0, self._at)
        try:
            value = orjson.loads(self._text[self._at : end].encode("utf-8", "surrogatepass"))
        except orjson.JSONDecodeError as error:
            raise self._wrong(f"not JSON ({error.msg})", self._at + error.pos) from error
        self._at = end
        return number, _object(value, self._shown, number)

    def _wrong(self, why: str, position: int) -> InputError:
        line = self._lines + self._text.count("\n", 0, position)
        return InputError(f"{self._shown}, line {line}: {why}: write the file again")


def _object(value: Any, shown: str, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{shown}, line {number}: not a JSON object: a document must be a JSON object")
    return value


def _why_not_json(line: bytes, error: orjson.JSONDecodeError, number: int) -> str:
    for magic, suffix in _COMPRESSED.items():
        if number == 1 and line.startswith(magic):
            return f"not JSON, the file is compressed: end its name with {suffix}"
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as wrong:
        return f"not UTF-8 ({wrong.reason} at byte {wrong.start} of the line): convert the file to UTF-8"
    return f"not JSON ({error.msg} at character {error.colno}): correct or remove the line"
