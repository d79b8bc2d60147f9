"""Templates of instructions: the text of a prompt, for training and for evaluation.

:func:`dolly_prompt` writes the prompt of Dolly. :class:`ChatTemplate` renders the chat template of a tokenizer.
Training and evaluation use the same functions. A model is therefore evaluated with the text that it was trained on.
"""

import json
from datetime import date
from pathlib import Path
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from exact_titan.errors import InputError
from exact_titan.system.json_files import read_optional_object

# The headings of databrickslabs/dolly, training/consts.py.
_INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_INSTRUCTION, _INPUT, _RESPONSE = "### Instruction:", "Input:", "### Response:"
DOLLY_END = "### End"
"""The heading after a response of Dolly. The response ends before this heading and the empty line before it."""

CHAT_TEMPLATE = "chat_template.jinja"
_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS_MAP = "special_tokens_map.json"
_DATE = date(2024, 7, 26)


def dolly_prompt(instruction: str, context: str = "") -> str:
    """Return the prompt of Dolly, up to the heading of the response and its newline.

    The wording is the wording of databrickslabs/dolly, ``training/consts.py``. A prompt without context has no heading
    ``Input:``. The texts are not stripped.
    """
    parts = [_INTRO, f"{_INSTRUCTION}\n{instruction}"]
    if context:
        parts.append(f"{_INPUT}\n{context}")
    return "\n\n".join([*parts, f"{_RESPONSE}\n"])


class ChatTemplate:
    """The chat template of a tokenizer, rendered as transformers renders it.

    The module uses jinja2 and not transformers, because packing and training do not need transformers. The environment
    is sandboxed, because a template is a program from the author of the tokenizer.

    There is one difference from transformers. ``strftime_now`` always formats 26 July 2024, the default date of the
    templates of Llama 3. A packed dataset and a prompt must not depend on the day.

    Args:
        text: the Jinja template.
        special_tokens: the special tokens that the template may use, such as ``bos_token``.
        shown: the file of the template, for messages.

    Attributes:
        text: the Jinja template.

    Raises:
        InputError: if the template is not a Jinja template.
    """

    def __init__(self, text: str, special_tokens: dict[str, str], shown: str) -> None:
        self.text, self._special_tokens, self._shown = text, special_tokens, shown
        try:
            self._template = _environment().from_string(text)
        except jinja2.TemplateSyntaxError as error:
            raise InputError(
                f"{shown}: the chat template is not a Jinja template (line {error.lineno}: {error.message}): "
                "copy the tokenizer again"
            ) from error

    @classmethod
    def of(cls, tokenizer_folder: Path) -> "ChatTemplate":
        """Read the chat template of a Hugging Face tokenizer folder.

        The template is ``chat_template.jinja``, or the key ``chat_template`` of ``tokenizer_config.json``. If the key
        lists several templates, the template is the one with the name ``default``.

        Raises:
            InputError: if the folder has no chat template, or a file is broken. The error names the folder or the file.
        """
        way_out = "copy the tokenizer again"
        config = read_optional_object(tokenizer_folder / _CONFIG, way_out=way_out)
        names = read_optional_object(tokenizer_folder / _SPECIAL_TOKENS_MAP, way_out=way_out) | config
        special_tokens = {key: text for key, value in names.items() if (text := _special_token(key, value)) is not None}
        file = tokenizer_folder / CHAT_TEMPLATE
        if file.is_file():
            return cls(file.read_text(encoding="utf-8"), special_tokens, str(file))
        template = config.get("chat_template")
        if isinstance(template, list):
            named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
            template = named.get("default")
        if not isinstance(template, str):
            raise InputError(
                f"{tokenizer_folder} has no chat template: no {CHAT_TEMPLATE}, and no chat_template in {_CONFIG}: use "
                "the tokenizer of a chat model, or the template dolly"
            )
        return cls(template, special_tokens, str(tokenizer_folder / _CONFIG))

    def prompt(self, messages: list[dict[str, str]]) -> str:
        """Return the text of messages with the generation prompt: the model writes the next assistant message.

        Args:
            messages: objects with ``role`` and ``content``.

        Raises:
            InputError: if the template refuses the messages. The error has the reason of the template.
        """
        return self._render(messages, add_generation_prompt=True)

    def conversation(self, messages: list[dict[str, str]]) -> str:
        """Return the text of messages without a generation prompt.

        Raises:
            InputError: in the cases of :meth:`prompt`.
        """
        return self._render(messages, add_generation_prompt=False)

    def _render(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        # A template is a program. Its mistakes are any exception of Python.
        except Exception as error:
            why = str(error).strip() or type(error).__name__
            raise InputError(
                f"the chat template of {self._shown} refuses the messages ({why.splitlines()[0]}): correct the "
                "messages, or use another template"
            ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of transformers, ``utils/chat_template_utils.py``."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


class _Generation(Extension):
    """The tag ``{% generation %} … {% endgeneration %}`` marks an assistant's text and does not change the text."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes the characters of HTML.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return _DATE.strftime(form)


def _special_token(key: str, value: Any) -> str | None:
    """Return the text of a special token in a tokenizer's configuration. None for a key of another kind."""
    if not key.endswith("_token"):
        return None
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None
