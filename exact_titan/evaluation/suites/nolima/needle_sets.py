"""Needle sets: JSON files with the schema of NoLiMa, and the questions that they hold.

A file is a list of entries. An entry has a needle with placeholders, questions by kind (``onehop``, ``twohop``,
``direct``), and tests with the values of the placeholders ``{1}``, ``{2}``, …. The placeholder ``{CHAR}`` is the name
of a character, and the name is the right answer. Schema: ``evaluation/run_tests.py`` of
github.com/adobe-research/NoLiMa. The optional field ``choices`` is an addition of this package.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.system.json_files import read_json

CHARACTER = "{CHAR}"
TEMPLATE_FILE = "evaluation/run_tests.py"
"""File with the template of entries without ``task_template``, in a clone of github.com/adobe-research/NoLiMa."""


@dataclass(frozen=True)
class Question:
    """One needle with one question.

    Attributes:
        name: entry, test and kind, such as ``0401_T01_onehop``. Unique in a needle set.
        kind: key of the question in its entry, such as ``onehop``.
        template: text around the haystack and the question, with ``{haystack}`` and ``{question}``.
        needle: the sentence that is hidden in the haystack.
        question: the question about the needle.
        characters: names from which the right answer is drawn. Empty: ``references`` are the right answers.
        references: the right answers. Empty as long as no character is chosen.
        distractor: a sentence with the words of the question and without the answer. None: no distractor.
        choices: the names that a multiple choice question offers. Empty: the needle set does not name the choices.
    """

    name: str
    kind: str
    template: str
    needle: str
    question: str
    characters: tuple[str, ...]
    references: tuple[str, ...] = ()
    distractor: str | None = None
    choices: tuple[str, ...] = ()

    def about(self, character: str) -> "Question":
        """Return the question with a character in the place of ``{CHAR}``. The character is the right answer."""
        return replace(
            self,
            needle=self.needle.replace(CHARACTER, character),
            question=self.question.replace(CHARACTER, character),
            references=(character,),
            choices=tuple(one.replace(CHARACTER, character) for one in self.choices),
        )


@dataclass(frozen=True)
class NeedleSetRules:
    """The demands of a task on its needle set.

    Attributes:
        kinds: beginnings of the kinds of question that count. Empty: every kind except ``direct``.
        distractors: whether every question needs a distractor.
        choices: whether the names that a question offers are read.
    """

    kinds: tuple[str, ...] = ()
    distractors: bool = False
    choices: bool = False

    def counts(self, kind: str) -> bool:
        """Return whether the questions of a kind count.

        Direct questions repeat the words of their needle. ``evaluation/gather_results.ipynb`` of NoLiMa leaves direct
        questions out of the score.
        """
        return kind.startswith(self.kinds) if self.kinds else "direct" not in kind


def read_needle_set(file: Path, rules: NeedleSetRules, default_template: str | None) -> tuple[Question, ...]:
    """Read the questions of a needle set that count.

    Args:
        file: the needle set.
        rules: the demands of the task.
        default_template: template of the entries without ``task_template``. None: there is no default.

    Raises:
        InputError: naming the file, the entry and the field that is missing or wrong.
    """
    try:
        entries = read_json(file)
    except FileNotFoundError:
        raise InputError(f"{file}: no such file: copy the needle set into the folder") from None
    except ValueError as error:
        raise InputError(f"{file} cannot be read as JSON ({error}): copy the needle set again") from None
    if not isinstance(entries, list) or not all(isinstance(one, dict) for one in entries):
        raise InputError(f"{file} is not a list of JSON objects: copy the needle set again")
    questions = [
        question
        for number, entry in enumerate(entries, start=1)
        for question in _Entry(file, number, entry).questions(rules, default_template)
    ]
    if not questions:
        raise InputError(f"{file} has no question of the kind {' or '.join(rules.kinds or ('onehop', 'twohop'))}")
    names = [one.name for one in questions]
    twice = next((one for one in names if names.count(one) > 1), None)
    if twice is not None:
        raise InputError(f"{file}: the question {twice!r} occurs twice: give every entry its own id")
    return tuple(questions)


class _Entry:
    """One entry of a needle set. The messages name the file, the entry and the field."""

    def __init__(self, file: Path, number: int, fields: dict[str, Any]) -> None:
        self._fields = fields
        self._id = fields.get("id")
        self._where = f"{file}: entry {number}" + (f" ({self._id})" if isinstance(self._id, str) else "")

    def questions(self, rules: NeedleSetRules, default_template: str | None) -> list[Question]:
        self._text("id")
        needle = self._text("needle")
        texts = self._texts(self._field("questions"), "questions")
        tests = self._field("tests")
        template = self._template(default_template)
        if not isinstance(tests, dict):
            raise self._error("tests", "is not a JSON object")
        found = []
        for kind, text in texts.items():
            if not rules.counts(kind):
                continue
            distractor = self._distractor(kind) if rules.distractors else None
            choices = self._choices() if rules.choices else ()
            for test, values in tests.items():
                arguments = self._arguments(test, values)
                question = Question(
                    name=f"{self._id}_{test}_{kind}",
                    kind=kind,
                    template=template,
                    needle=self._filled("needle", needle, arguments),
                    question=self._filled(f"questions.{kind}", text, arguments),
                    characters=self._names("character_set") if CHARACTER in needle else (),
                    references=() if CHARACTER in needle else self._gold_answers(test, values),
                    distractor=distractor and self._filled(f"distractors.{kind}", distractor, arguments),
                    choices=choices,
                )
                found.append(question)
        return found

    def _template(self, default: str | None) -> str:
        if "task_template" not in self._fields and default is None:
            raise self._error(
                "task_template",
                f"is missing: name a clone of github.com/adobe-research/NoLiMa as the folder, because its "
                f"{TEMPLATE_FILE} has the template",
            )
        template = self._text("task_template") if "task_template" in self._fields else str(default)
        try:
            parts = template.format(haystack="\0", question="\1")
        except (KeyError, IndexError, ValueError) as error:
            raise self._error("task_template", f"has a placeholder that NoLiMa does not have ({error})") from None
        if parts.count("\0") != 1 or parts.count("\1") != 1:
            raise self._error("task_template", "does not have {haystack} and {question} once each")
        return template

    def _choices(self) -> tuple[str, ...]:
        if "choices" not in self._fields:
            return ()
        choices = self._names("choices")
        if len(choices) < 2:
            raise self._error("choices", "has fewer than 2 names")
        if choices.count(CHARACTER) != 1 or CHARACTER not in self._text("needle"):
            raise self._error("choices", f"does not have {CHARACTER} once, or the needle does not have it")
        return choices

    def _distractor(self, kind: str) -> str:
        texts = self._texts(self._field("distractors"), "distractors")
        if kind not in texts:
            raise self._error(f"distractors.{kind}", "is missing: give every kind of question its distractor")
        return texts[kind]

    def _arguments(self, test: str, values: Any) -> tuple[str, ...]:
        if not isinstance(values, dict) or "input_args" not in values:
            raise self._error(f"tests.{test}.input_args", "is missing: copy the needle set again")
        return self._strings(values["input_args"], f"tests.{test}.input_args")

    def _gold_answers(self, test: str, values: dict[str, Any]) -> tuple[str, ...]:
        field = f"tests.{test}.gold_answers"
        if "gold_answers" not in values:
            raise self._error(field, f"is missing: a needle without {CHARACTER} needs its right answers")
        answers = values["gold_answers"]
        return self._strings([answers] if isinstance(answers, str) else answers, field)

    def _filled(self, field: str, text: str, arguments: Sequence[str]) -> str:
        for number, argument in enumerate(arguments, start=1):
            text = text.replace(f"{{{number}}}", argument)
        left = re.search(r"\{\d+\}", text)
        if left is not None:
            raise self._error(field, f"has the placeholder {left.group()}, and a test has {len(arguments)} input_args")
        return text

    def _names(self, field: str) -> tuple[str, ...]:
        return self._strings(self._field(field), field)

    def _strings(self, value: Any, field: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not value or not all(isinstance(one, str) and one for one in value):
            raise self._error(field, "is not a list of texts")
        return tuple(value)

    def _texts(self, value: Any, field: str) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(one, str) and one for one in value.values()):
            raise self._error(field, "is not a JSON object of texts")
        return value

    def _text(self, field: str) -> str:
        value = self._field(field)
        if not isinstance(value, str) or not value:
            raise self._error(field, "is not a text")
        return value

    def _field(self, field: str) -> Any:
        if field not in self._fields:
            raise self._error(field, "is missing: copy the needle set again")
        return self._fields[field]

    def _error(self, field: str, fault: str) -> InputError:
        return InputError(f"{self._where}: the field {field} {fault}")
