"""Find the end of a JSON object in bytes that arrive piece by piece, before the object is parsed.

A parser builds Python objects for everything in the object. The scan bounds their number and depth first. Each byte is
read once.
"""

import re

from exact_titan.documents import limits

DEEPEST = 1024
"""Maximum nesting of objects and arrays. The parser has the same maximum."""

_MARK = re.compile(rb'[",{}\[\]]')
# The possessive forms keep no positions to return to: memory does not grow with the text.
_IN_STRING = re.compile(rb'[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+')
_QUOTE, _BACKSLASH = b'"\\'


class ObjectScan:
    """The scan of one object. The object begins with ``{``.

    Attributes:
        position: number of the object's bytes that have been read.
        is_broken: whether a string has a line break.
        is_too_deep: whether the object is nested deeper than :data:`DEEPEST`.
    """

    def __init__(self) -> None:
        self.position = 0
        self.is_broken = self.is_too_deep = False
        self._depth = self._values = 0
        self._in_string = False

    @property
    def has_too_many_values(self) -> bool:
        """Whether the object has more than :data:`~exact_titan.documents.limits.VALUES` values."""
        return self._values > limits.VALUES

    def reach_end(self, buffer: bytes | bytearray, start: int) -> bool:
        """Read on. Return whether the object ends in the buffer. False: the buffer ends, or the object is wrong.

        Args:
            buffer: bytes with the object.
            start: position of the object's first byte in the buffer.
        """
        at = start + self.position
        while at < len(buffer):
            if self._in_string:
                match = _IN_STRING.match(buffer, at)
                assert match is not None
                at = match.end()
                if at == len(buffer) or (buffer[at] == _BACKSLASH and at + 1 == len(buffer)):
                    break
                self.is_broken = buffer[at] != _QUOTE
                if self.is_broken:
                    break
                self._in_string = False
                at += 1
                continue
            match = _MARK.search(buffer, at)
            if match is None:
                at = len(buffer)
                break
            mark = match[0]
            at = match.end()
            if mark == b'"':
                self._in_string = True
            elif mark in b"{[":
                self._depth += 1
                self._values += 1
                self.is_too_deep = self._depth > DEEPEST
            elif mark in b"}]":
                self._depth -= 1
                if not self._depth:
                    self.position = at - start
                    return True
            else:
                self._values += 1
            if self.is_too_deep or self.has_too_many_values:
                break
        self.position = at - start
        return False


def has_too_many_values(line: bytes) -> bool:
    """Return whether a line has more JSON values than :data:`~exact_titan.documents.limits.VALUES`."""
    if len(line) <= limits.VALUES:  # every value needs a byte
        return False
    scan = ObjectScan()
    scan.reach_end(line, 0)
    return scan.has_too_many_values
