"""Instructions: from the rows of a file to samples. A sample is a prompt and the response that is learned.

1. :class:`Instructions` checks every row. A row has the fields of Dolly-15K (``instruction``, ``context`` and
   ``response``), or ``messages``, a list of objects with ``role`` and ``content``. All rows of a file have the same
   fields.
2. A template renders prompt and response. :class:`DollyTurns` makes one sample of a row. :class:`ChatTurns` makes one
   sample of every assistant message: the prompt is the conversation before the message.
3. The module :mod:`sample_tokenizer` converts samples to token ids.
"""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from exact_titan.documents.special_letters import SpecialLetters
from exact_titan.documents.templates import DOLLY_END, ChatTemplate, dolly_prompt
from exact_titan.errors import InputError

TEMPLATES = ("dolly", "chat")
_FIELDS = "instruction, context and response, or messages"


@dataclass(frozen=True)
class Sample:
    """A prompt and its response, rendered and marked (:mod:`special_letters`).

    Attributes:
        name: file, row and, in a conversation, the assistant message: ``a.jsonl, line 17, message 3``.
        where: the name with the path of the file, for messages.
        prompt, response: the texts.
        row: a text of the row's contents. Samples of one row have the same text.
        begins_row: whether the sample is the first sample of its row.
    """

    name: str
    where: str
    prompt: str
    response: str
    row: str
    begins_row: bool


class Turn(NamedTuple):
    """A prompt, its response, and the index of the assistant message."""

    prompt: str
    response: str
    message: int


class Turns(Protocol):
    """A template of instructions.

    Attributes:
        name: the name of the template.
        sha256: digest (hex) of the template's text.
        adds_special_tokens: whether the tokenizer adds its first tokens to a prompt. A chat template has these tokens.
    """

    name: str
    sha256: str
    adds_special_tokens: bool

    def turns(self, messages: list[dict[str, str]], letters: SpecialLetters) -> Iterator[Turn]:
        """Yield the turns of a conversation. The contents of the messages are marked."""
        ...


def open_template(name: str, tokenizer: Path) -> Turns:
    """Return the template with a name of :data:`TEMPLATES`.

    Args:
        name: the name.
        tokenizer: a Hugging Face tokenizer folder, or its ``tokenizer.json``.

    Raises:
        InputError: if there is no such template, or the tokenizer has no chat template.
    """
    if name not in TEMPLATES:
        raise InputError(f"--template is {name!r}: choose one of {', '.join(TEMPLATES)}")
    if name == "dolly":
        return DollyTurns()
    return ChatTurns(ChatTemplate.of(tokenizer if tokenizer.is_dir() else tokenizer.parent))


class DollyTurns:
    """Dolly's template: one instruction and one response, which ends with Dolly's heading ``### End``."""

    name = "dolly"
    adds_special_tokens = True

    def __init__(self) -> None:
        text = dolly_prompt("{instruction}", "{context}") + self._response("{response}")
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()

    def turns(self, messages: list[dict[str, str]], letters: SpecialLetters) -> Iterator[Turn]:
        """Yield the turn of a user message and an assistant message. The user message may have a ``context``.

        Raises:
            InputError: if the conversation has other messages.
        """
        if [message["role"] for message in messages] != ["user", "assistant"]:
            raise InputError(
                "Dolly's template takes one user message and one assistant message: use --template chat for a "
                "conversation"
            )
        user, assistant = messages
        yield Turn(dolly_prompt(user["content"], user.get("context", "")), self._response(assistant["content"]), 1)

    @staticmethod
    def _response(text: str) -> str:
        return f"{text}\n\n{DOLLY_END}"


class ChatTurns:
    """The chat template of a tokenizer. The context of an instruction stands below the instruction."""

    name = "chat"
    adds_special_tokens = False

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self.sha256 = hashlib.sha256(template.text.encode()).hexdigest()

    def turns(self, messages: list[dict[str, str]], letters: SpecialLetters) -> Iterator[Turn]:
        """Yield one turn for every assistant message.

        The response is the text that the template adds for the message, up to the token that ends the message. The
        white space after this token separates messages, and a model does not generate the white space.

        Raises:
            InputError: if the template refuses the messages, or the text of an assistant message does not begin with
                the generation prompt.
        """
        plain = [_as_message(message) for message in messages]
        for index, message in enumerate(plain):
            if message["role"] != "assistant":
                continue
            prompt = self._template.prompt(plain[:index])
            whole = self._template.conversation(plain[: index + 1])
            if not whole.startswith(prompt):
                raise InputError(
                    "the chat template writes an assistant message in another way than its generation prompt: use "
                    "--template dolly, or another chat template"
                )
            response = whole[len(prompt) :]
            end = response.rstrip()
            yield Turn(prompt, end if letters.ends_turn(end) else response, index)


def _as_message(message: dict[str, str]) -> dict[str, str]:
    parts = [message["content"], message.get("context", "")]
    return {"role": message["role"], "content": "\n\n".join(filter(None, parts))}


class Instructions:
    """The samples of the rows of one file.

    Args:
        name: name of the file for the manifest.
        shown: name of the file for messages.
        template: the template.
        letters: marks the letters of special tokens.

    Attributes:
        unanswered: number of messages after the last assistant message of their conversation, so far. No sample has
            these messages.
    """

    def __init__(self, name: str, shown: str, template: Turns, letters: SpecialLetters) -> None:
        self._name, self._shown, self._template, self._letters = name, shown, template, letters
        self.unanswered = 0

    def samples(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Sample]:
        """Yield the samples of rows. A row has a name, such as ``line 17``, and its contents.

        Raises:
            InputError: if a row cannot be used, or there is no row. The error names the file and the row.
        """
        first: tuple[str, bool] | None = None
        for name, row in rows:
            try:
                is_chat = "messages" in row
                first = first or (name, is_chat)
                if is_chat and "instruction" in row:
                    raise InputError(f"both 'messages' and 'instruction': a row has {_FIELDS}")
                if first[1] != is_chat:
                    raise InputError(f"other fields than {first[0]}: a file has rows with {_FIELDS}, not both")
                messages = _messages(row["messages"]) if is_chat else _instruction(row)
                yield from self._row(name, messages)
            except InputError as error:
                raise InputError(f"{self._shown}, {name}: {error}") from error
        if first is None:
            raise InputError(f"{self._shown} has no row: give a file of instructions, or leave the file out")

    def _row(self, name: str, messages: list[dict[str, str]]) -> Iterator[Sample]:
        answers = sum(message["role"] == "assistant" for message in messages)
        while messages[-1]["role"] != "assistant":
            messages = messages[:-1]
            self.unanswered += 1
        marked = [
            {key: text if key == "role" else self._letters.mark(text) for key, text in message.items()}
            for message in messages
        ]
        row = repr(messages)
        for number, turn in enumerate(self._template.turns(marked, self._letters)):
            place = name if answers == 1 else f"{name}, message {turn.message + 1}"
            yield Sample(
                name=f"{self._name}, {place}",
                where=f"{self._shown}, {place}",
                prompt=turn.prompt,
                response=turn.response,
                row=row,
                begins_row=number == 0,
            )


def _instruction(row: dict[str, Any]) -> list[dict[str, str]]:
    """Return a row with Dolly's fields as a conversation. A missing context, and the context null, are empty."""
    context = row.get("context")
    texts = {key: row.get(key) for key in ("instruction", "response")} | {"context": "" if context is None else context}
    for key, text in texts.items():
        if key not in row and text is None:
            raise InputError(f"no field {key!r}: a row has {_FIELDS}")
        if not isinstance(text, str):
            raise InputError(f"{key!r} is {type(text).__name__}, not text: correct or remove the row")
        if key != "context" and not text.strip():
            raise InputError(f"the {key} is empty: correct or remove the row")
    return [
        {"role": "user", "content": texts["instruction"], "context": texts["context"]},
        {"role": "assistant", "content": texts["response"]},
    ]


def _messages(value: Any) -> list[dict[str, str]]:
    """Check the messages of a row. Return role and content of every message."""
    if not isinstance(value, list) or not value:
        raise InputError("'messages' is not a list with messages: correct or remove the row")
    messages = []
    for number, message in enumerate(value, 1):
        role, content = (message.get(key) if isinstance(message, dict) else None for key in ("role", "content"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise InputError(f"message {number} has no role and content as text: correct or remove the row")
        if message.get("tool_calls"):
            raise InputError(f"message {number} has tool_calls, but packing reads only texts: remove the row")
        if role == "assistant" and not content.strip():
            raise InputError(f"message {number}, the response of the assistant, is empty: correct or remove the row")
        messages.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in messages):
        raise InputError("the messages have no assistant message: correct or remove the row")
    return messages
