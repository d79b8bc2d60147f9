"""Letters of a user's text that spell a special token stay letters.

A text such as ``<|im_end|>`` inside an instruction is the user's text, but a tokenizer reads the text as its special
token. :meth:`SpecialLetters.mark` puts marks around these letters before a template renders the text.
:meth:`SpecialLetters.pieces` finds the marks in the rendered text. The method is the method of transformers 5
(``mark_control_tokens``).
"""

import re
from collections.abc import Sequence

from exact_titan.errors import InputError

# Characters of a private use area. Texts do not have them.
_START, _END = "\U000f0000", "\U000f0001"


class SpecialLetters:
    """Marks the letters that spell a special token.

    Args:
        tokens: texts of the special tokens.
    """

    def __init__(self, tokens: Sequence[str]) -> None:
        # The longest token first: a token may begin with another token.
        longest_first = sorted(filter(None, tokens), key=len, reverse=True)
        self._tokens = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def mark(self, text: str) -> str:
        """Return the text with marks around the letters of special tokens.

        Raises:
            InputError: if the text has a mark already.
        """
        if _START in text or _END in text:
            raise InputError("the text has the character U+F0000 or U+F0001, a mark of packing: remove the character")
        return self._tokens.sub(f"{_START}\\g<0>{_END}", text)

    def pieces(self, text: str) -> list[tuple[str, bool]]:
        """Divide a marked text at the marks. The flag says that the piece is the letters of a special token.

        The pieces have no marks. Empty pieces are left out.
        """
        # A template may divide a marked text. A mark alone is only a border between two pieces.
        found = re.split(f"{_START}({self._tokens.pattern}){_END}|[{_START}{_END}]", text)
        return [(piece, index % 2 == 1) for index, piece in enumerate(found) if piece]

    def ends_turn(self, text: str) -> bool:
        """Return whether a text ends with a special token and not with letters that spell a special token."""
        pieces = self.pieces(text)
        if not pieces or pieces[-1][1]:
            return False
        last = pieces[-1][0]
        return any(match.end() == len(last) for match in self._tokens.finditer(last))
