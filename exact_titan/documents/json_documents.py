"""Read JSON objects: one per line, or the values of one array, or values over several lines.

An error carries the line of the file. Memory holds about one object, of bounded size (:mod:`limits`).
"""

import json
from collections.abc import Iterator
from io import BufferedReader
from typing import Any

import orjson

from exact_titan.documents import limits
from exact_titan.documents.json_scan import DEEPEST, ObjectScan, has_too_many_values
from exact_titan.errors import InputError

CHUNK = 2**20
_BOM = b"\xef\xbb\xbf"
_BLANK_RUN = 256


def read_lines(stream: BufferedReader, shown: str, first: bytes = b"") -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number of the line, from 1; object) of every line that is not blank.

    Args:
        stream: the lines.
        shown: name of the file in messages.
        first: the first line, if the caller has read it from the stream.

    Raises:
        InputError: if a line is not a JSON object, or is too large. The error names the file as ``shown``, and the
            line.
    """
    for number, line in _lines(stream, shown, first):
        if has_too_many_values(line):
            raise limits.too_many_values(f"{shown}, line {number}")
        try:
            value = _loads(line.removeprefix(_BOM) if number == 1 else line)
        except orjson.JSONDecodeError as error:
            raise InputError(f"{shown}, line {number}: {_why_not_json(line, error)}") from error
        if number == 1 and isinstance(value, list):
            raise InputError(f"{shown}, line 1: not a JSON object, but an array: end the name of the file with .json")
        yield number, _object(value, shown, number)


def _lines(stream: BufferedReader, shown: str, first: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield number and bytes of every line that is not blank."""
    number = blank = 0
    line = first or stream.readline(limits.DOCUMENT_BYTES + 1)
    while line:
        number += 1
        if len(line) > limits.DOCUMENT_BYTES:
            raise limits.too_large(f"{shown}, line {number}", "the line")
        if line.isspace():
            blank += 1
            if blank >= _BLANK_RUN:
                number += _pass_blank_lines(stream)
        else:
            blank = 0
            yield number, line
        line = stream.readline(limits.DOCUMENT_BYTES + 1)


def _pass_blank_lines(stream: BufferedReader) -> int:
    """Read white space up to the next text at the speed of memory. Return the number of lines."""
    lines = 0
    while ahead := stream.peek():
        text = ahead.lstrip()
        blank = len(ahead) - len(text)
        lines += ahead.count(b"\n", 0, blank)
        stream.read(blank)
        if text:
            break
    return lines


def read_any(stream: BufferedReader, shown: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (number, object) of a ``.json`` file: lines, one array, or objects over several lines.

    The number is the line on which the object begins.

    Raises:
        InputError: in the cases of :func:`read_lines`; also if an array has no end.
    """
    start = stream.peek(64)[:64].removeprefix(_BOM)
    if start.lstrip()[:1] == b"[":
        yield from _Values(stream, shown)
        return
    first = stream.readline(limits.DOCUMENT_BYTES + 1)
    try:
        if not has_too_many_values(first):
            _loads(first.removeprefix(_BOM))
    except orjson.JSONDecodeError:
        yield from _Values(stream, shown, first)
    else:
        yield from read_lines(stream, shown, first)


class _Values:
    """The objects of one array, or objects one after another.

    Args:
        stream: the bytes.
        shown: name of the file in messages.
        first: bytes that the caller has read from the stream.
    """

    def __init__(self, stream: BufferedReader, shown: str, first: bytes = b"") -> None:
        self._stream, self._shown = stream, shown
        self._buffer, self._at = bytearray(first), 0
        self._line, self._counted = 1, 0  # the line of a position of the buffer
        if len(self._buffer) < len(_BOM):
            self._more()
        if self._buffer.startswith(_BOM):
            self._at = len(_BOM)

    def __iter__(self) -> Iterator[tuple[int, dict[str, Any]]]:
        if self._next() != b"[":
            while self._next():
                yield self._value()
            return
        self._at += 1
        if self._next() != b"]":
            yield self._value()
            while self._next() == b",":
                self._at += 1
                yield self._value()
        if self._next() != b"]":
            raise self._wrong(
                "the array is cut short" if not self._next() else "not JSON (, or ] is missing)", self._at
            )
        self._at += 1
        if self._next():
            raise self._wrong("not JSON (text after the end of the array)", self._at)

    def _next(self) -> bytes:
        """Return the next byte that is not white space, or nothing at the end."""
        while True:
            ahead = self._buffer[self._at : self._at + 64]
            text = ahead.lstrip()
            self._at += len(ahead) - len(text)
            if text:
                return bytes(text[:1])
            if not ahead and not self._more():
                return b""

    def _more(self) -> bool:
        """Read more, and forget the bytes before the position. Return whether there was more."""
        self._line_of(self._at)
        del self._buffer[: self._at]
        self._at = self._counted = 0
        read = self._stream.read(CHUNK)
        self._buffer += read
        return bool(read)

    def _value(self) -> tuple[int, dict[str, Any]]:
        if self._next() != b"{":
            what = "not a JSON object: a document must be a JSON object" if self._next() else "the file is cut short"
            raise self._wrong(what, self._at)
        scan = ObjectScan()
        while not scan.reach_end(self._buffer, self._at):
            position = self._at + scan.position
            if scan.is_broken:
                raise self._wrong("not JSON (a string or an object has no end)", position)
            if scan.is_too_deep:
                raise self._wrong(f"not JSON (nested deeper than {DEEPEST})", position)
            if scan.has_too_many_values:
                raise limits.too_many_values(self._place(self._at))
            if len(self._buffer) - self._at > limits.DOCUMENT_BYTES:
                raise limits.too_large(self._place(self._at), "the object")
            if not self._more():
                raise self._wrong("not JSON (a string or an object has no end)", self._at)
        if scan.position > limits.DOCUMENT_BYTES:
            raise limits.too_large(self._place(self._at), "the object", scan.position)
        end = self._at + scan.position
        number = self._line_of(self._at)
        content = bytes(memoryview(self._buffer)[self._at : end])
        try:
            value = _loads(content)
        except orjson.JSONDecodeError as error:
            if (wrong := _utf8_error(content)) is not None:
                raise InputError(
                    f"{self._shown}, after line {number}: not UTF-8 ({wrong.reason}): convert the file to UTF-8"
                ) from error
            # The library counts characters, and a line is the same for characters and bytes.
            raise self._wrong(f"not JSON ({error.msg})", self._at, error.lineno - 1) from error
        self._at = end
        return number, _object(value, self._shown, number)

    def _line_of(self, position: int) -> int:
        """Return the line of a position. The positions of the calls do not fall."""
        self._line += self._buffer.count(b"\n", self._counted, position)
        self._counted = position
        return self._line

    def _place(self, position: int, further: int = 0) -> str:
        return f"{self._shown}, line {self._line_of(position) + further}"

    def _wrong(self, why: str, position: int, further: int = 0) -> InputError:
        return InputError(f"{self._place(position, further)}: {why}: write the file again")


def _loads(content: bytes) -> Any:
    """Parse JSON. The numbers NaN and Infinity become None: Python and pandas write them, and JSON does not have them.

    Raises:
        orjson.JSONDecodeError: if the content is not JSON for another reason.
    """
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        if b"NaN" not in content and b"Infinity" not in content:
            raise
        try:
            value = json.loads(content.decode(), parse_constant=lambda _: None)
            json.dumps(value, ensure_ascii=False).encode()  # Python reads half a character, such as \\ud800
        except (ValueError, RecursionError):
            value = None
        if value is None:
            raise
        return value


def _object(value: Any, shown: str, number: int) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{shown}, line {number}: not a JSON object: a document must be a JSON object")
    return value


def _why_not_json(line: bytes, error: orjson.JSONDecodeError) -> str:
    if (wrong := _utf8_error(line)) is not None:
        return f"not UTF-8 ({wrong.reason} at byte {wrong.start} of the line): convert the file to UTF-8"
    return f"not JSON ({error.msg} at character {error.colno}): correct or remove the line"


def _utf8_error(content: bytes) -> UnicodeDecodeError | None:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        return error
    return None
