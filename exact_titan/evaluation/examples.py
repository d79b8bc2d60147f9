"""One question of a suite: the prompt, the answers that count, and the place of the evidence."""

from dataclasses import asdict, dataclass, field
from typing import Any

from exact_titan.system.typed_values import WHOLE_RECORD, parse_typed


@dataclass(frozen=True)
class Example:
    """One prompt of a suite, with everything that its score needs.

    Attributes:
        id: unique in the prompt set, such as ``ruler/niah_single_1/4096/17``. Answers name their example by this id.
        suite: name of the suite.
        task: name of the task in the suite.
        prompt: the whole prompt with its template and its answer prefix.
        tokens: number of token ids of the prompt, with BOS.
        room: largest number of tokens to generate. 0: no generation, likelihood only.
        length: nominal context length of the cell in tokens, with the room. None: a task without a context length.
        references: the right answers. The suite says how a text is compared with them.
        continuations: texts whose log-likelihood after the prompt is measured. For a question with generation: the
            right answer, alone. For a question with choices: the choices, with their leading space.
        gold: index of the right text in ``continuations``.
        stop: texts that end a generation. The texts are not part of the answer.
        depth: place of the evidence in the context, 0 (start) to 1 (end). None: no single evidence.
        distance: tokens from the end of the evidence to the end of the prompt. None: no single evidence.
        prefix: name of the text that this prompt shares with other prompts from the first token on, such as the book
            and the depth. Engines take examples with one prefix one after another. Empty: nothing is shared.
        meta: further values that the suite's score needs, such as the pair of an example.
        special_tokens: whether an engine adds the special tokens of the tokenizer, such as BOS, to the prompt. False:
            the chat template has written all special tokens.
    """

    id: str
    suite: str
    task: str
    prompt: str
    tokens: int
    room: int
    length: int | None = None
    references: tuple[str, ...] = ()
    continuations: tuple[str, ...] = ()
    gold: int = 0
    stop: tuple[str, ...] = ()
    depth: float | None = None
    distance: int | None = None
    prefix: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    special_tokens: bool = True

    def as_json(self) -> dict[str, Any]:
        """Return the example as a record."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any], where: str) -> "Example":
        """Return the example of a record.

        Raises:
            InputError: naming ``where`` and the field that is missing or unknown.
        """
        return from_record(cls, record, where)


def from_record(kind: type[Any], record: Any, where: str) -> Any:
    """Return the dataclass of a record. JSON lists become tuples.

    Raises:
        InputError: naming ``where`` and the field that is missing, is unknown or has another type.
    """
    return parse_typed(kind, record, where, way_out="make the file again", rules=WHOLE_RECORD)
