"""Greedy generation: the end of a generated sequence, and its text."""

from collections.abc import Sequence
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.system.json_files import read_optional_object


def end_tokens(folder: Path) -> frozenset[int]:
    """Return the ids that end a generation: ``eos_token_id`` of ``generation_config.json`` and of ``config.json``.

    Raises:
        InputError: if a file is damaged.
    """
    found: set[int] = set()
    for name in ("generation_config.json", "config.json"):
        file = folder / name
        ids = read_optional_object(file, way_out="copy the file again").get("eos_token_id")
        ids = ids if isinstance(ids, list) else [] if ids is None else [ids]
        if not all(isinstance(one, int) for one in ids):
            raise InputError(f"{file}: eos_token_id is {ids!r:.60}: it must be a number or a list of numbers")
        found.update(ids)
    return frozenset(found)


def cut_at_stop(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the first stop text, and whether there is a stop text."""
    places = [place for one in stop if one and (place := text.find(one)) >= 0]
    return (text[: min(places)], True) if places else (text, False)


class Generated:
    """The answer to one prompt while its tokens are generated.

    Args:
        tokenizer: tokenizer of the model.
        ends: ids that end the answer.
        room: largest number of tokens.
        stop: texts that end the answer.

    Attributes:
        ids: the generated tokens, with the end token.
        text: the text of the tokens, without the stop text and without special tokens.
        finish: ``stop``, ``length``, or empty while the generation runs.
    """

    def __init__(self, tokenizer: PromptTokenizer, ends: frozenset[int], room: int, stop: Sequence[str]) -> None:
        self._tokenizer, self._ends, self._room, self._stop = tokenizer, ends, room, stop
        self.ids: list[int] = []
        self.text = ""
        self.finish = ""

    @property
    def finished(self) -> bool:
        """Whether no further token belongs to the answer."""
        return bool(self.finish) or self._room == 0

    def add(self, token: int) -> None:
        """Add a token. A token after the end of the answer is passed over."""
        if self.finished:
            return
        self.ids.append(token)
        ended = token in self._ends
        full = len(self.ids) == self._room
        if self._stop or ended or full:
            self.text, stopped = cut_at_stop(self._tokenizer.decode(self.ids), self._stop)
            self.finish = "stop" if ended or stopped else "length" if full else ""
