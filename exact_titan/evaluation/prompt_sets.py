"""Prompt sets: the examples of one suite at one length, for one tokenizer and one seed, in one JSONL file.

The name of the file says what it holds: ``<suite>-<length>-<key>.jsonl``, such as ``ruler-4096-1f0c2a9d33b1.jsonl``.
The key is a digest of everything that decides the prompts (:class:`PromptRecipe`). Preparing the same prompts again
finds the file.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.examples import Example, from_record
from exact_titan.evaluation.record_files import read_header, read_records, write_records
from exact_titan.system.typed_values import fits

FORMAT = 1
PROMPTS_FOLDER = "prompts"
"""Folder of the prompt sets inside the folder of an evaluation."""


@dataclass(frozen=True)
class PromptRecipe:
    """Everything that decides the prompts of a set.

    Attributes:
        suite: name of the suite.
        version: version of the suite's rules. A change of a rule that changes a prompt raises the version.
        tasks: names of the tasks.
        length: context length in tokens, with the room of the answer. None: a suite without lengths.
        examples: number of examples of a task (of a cell of the suite).
        seed: seed of the examples. Example ``k`` of a task depends on the seed, the task and ``k`` alone.
        tokenizer_sha256: digest of the ``tokenizer.json``.
        template: ``plain``, ``dolly`` or ``chat``.
        settings: further settings of the suite, with digests of the files that the suite reads.
    """

    suite: str
    version: int
    tasks: tuple[str, ...]
    length: int | None
    examples: int
    seed: int
    tokenizer_sha256: str
    template: str
    settings: dict[str, Any]

    @property
    def key(self) -> str:
        """Digest of the recipe, 12 hexadecimal digits."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:12]

    @property
    def file_name(self) -> str:
        """Name of the file of the set."""
        return f"{self.suite}-{self.length or 'any'}-{self.key}.jsonl"


@dataclass(frozen=True)
class PromptSet:
    """The examples of one suite at one length.

    Attributes:
        recipe: the recipe of the examples.
        notes: sentences for the reader of a report, such as which haystack the prompts use.
        examples: the examples in order. The ids are unique.
        sha256: digest of the file.
        file: the file.
    """

    recipe: PromptRecipe
    notes: tuple[str, ...]
    examples: tuple[Example, ...]
    sha256: str
    file: Path


def write_prompts(folder: Path, recipe: PromptRecipe, examples: Iterable[Example], notes: Iterable[str] = ()) -> Path:
    """Write a prompt set into a folder, atomically.

    Returns:
        The file.
    """
    file = folder / recipe.file_name
    header = {"format": FORMAT, "kind": "prompts", "recipe": asdict(recipe), "notes": list(notes)}
    write_records(file, header, (one.as_json() for one in examples))
    return file


def read_recipe(file: Path) -> PromptRecipe:
    """Read the recipe of a prompt set without its examples.

    Raises:
        InputError: if the file is not a prompt set.
    """
    return _recipe(file, read_header(file))


def read_prompts(file: Path) -> PromptSet:
    """Read a prompt set.

    Raises:
        InputError: if the file is not a prompt set, if its examples are not complete, or if an id occurs twice.
    """
    header = read_header(file)
    recipe = _recipe(file, header)
    examples = tuple(
        Example.from_json(record, f"{file}: line {number}") for number, record in enumerate(read_records(file), start=2)
    )
    if len({one.id for one in examples}) != len(examples):
        raise InputError(f"{file}: an id occurs twice: make the prompts again with `exact-titan eval prepare`")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    notes = header.get("notes", [])
    if not fits(notes, tuple[str, ...]):
        raise InputError(f"{file}: notes is {notes!r:.60}: it must be a list of texts")
    return PromptSet(recipe, tuple(notes), examples, digest, file)


def _recipe(file: Path, header: dict[str, Any]) -> PromptRecipe:
    if header.get("kind") != "prompts" or header.get("format") != FORMAT:
        raise InputError(f"{file} is not a prompt set of format {FORMAT}: make it with `exact-titan eval prepare`")
    return from_record(PromptRecipe, header.get("recipe"), str(file))
