"""The prompts of suites, made once and found again.

1. Ask every suite for its prompts at every length. A suite refuses wrong options, wrong files and lengths that are too
   short before it makes a prompt. Nothing is written yet.
2. Compute the key of every prompt set from everything that decides its prompts.
3. Find the file of the key, or make the prompts and write the file.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from exact_titan.documents.templates import DOLLY_END
from exact_titan.documents.tokenizer import FILE_NAME
from exact_titan.errors import InputError
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.options import SuiteOptions
from exact_titan.evaluation.prompt_sets import PROMPTS_FOLDER, PromptRecipe, read_prompts, write_prompts
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.suites import Prepared, Request, find_suite
from exact_titan.runs.destinations import check_writable
from exact_titan.runs.locations import MODEL_FOLDER, run_of


def prepare(
    suites: Sequence[str],
    *,
    tokenizer: PromptTokenizer,
    lengths: Sequence[int],
    examples: int,
    seed: int,
    options: SuiteOptions,
    out: Path,
) -> list[Path]:
    """Make the prompts of suites in ``out/prompts``, and print one line for each prompt set and for each note.

    Args:
        suites: names of the suites.
        tokenizer: counts tokens, and adds the template of the model.
        lengths: context lengths in tokens, for the suites with lengths.
        examples: number of examples of a task.
        seed: seed of the examples.
        options: the options of the suites.
        out: folder of the evaluation.

    Returns:
        The files of the prompt sets, in the order of ``suites`` and ``lengths``.

    Raises:
        InputError: if a suite does not exist or refuses the request, before anything is written.
    """
    check_writable(out, "--out")
    if not suites:
        raise InputError("no suite is named: name ruler, nolima, probe or qa")
    if examples < 1:
        raise InputError(f"--examples {examples}: name 1 or more")
    planned: list[tuple[PromptRecipe, Prepared]] = []
    chat = tokenizer.chat_template_sha256
    for name in dict.fromkeys(suites):
        suite = find_suite(name)
        chosen = getattr(options, name)
        if suite.has_lengths and not lengths:
            raise InputError(f"the suite {name} has prompts of a length: name --lengths, such as --lengths 4096 8192")
        if wrong := [one for one in lengths if one < 1]:
            raise InputError(f"--lengths {wrong[0]}: a length is 1 or more tokens")
        for length in dict.fromkeys(lengths) if suite.has_lengths else (None,):
            prepared = suite.prepare(Request(length, examples, seed, tokenizer, chosen))
            recipe = PromptRecipe(
                suite=name,
                version=suite.version,
                tasks=suite.tasks(chosen),
                length=length,
                examples=examples,
                seed=seed,
                tokenizer_sha256=tokenizer.sha256,
                template=tokenizer.template,
                settings=prepared.settings | ({"chat_template": chat} if chat else {}),
            )
            planned.append((recipe, prepared))
    files = [_written(recipe, prepared, out / PROMPTS_FOLDER) for recipe, prepared in planned]
    for note in dict.fromkeys(note for _, prepared in planned for note in prepared.notes):
        print(f"note: {note}", flush=True)
    return files


def tokenizer_folder(source: Path) -> Path:
    """Return the folder with the tokenizer of a run, a checkpoint or a Hugging Face folder.

    Raises:
        InputError: naming ``source``, if there is no tokenizer.
    """
    if not source.exists():
        raise InputError(f"{source}: no such folder: name a run, a checkpoint or a Hugging Face folder")
    for folder in (source, source / MODEL_FOLDER, run_of(source) / MODEL_FOLDER):
        if (folder / FILE_NAME).is_file():
            return folder
    raise InputError(
        f"{source} has no {FILE_NAME}, and no {MODEL_FOLDER}/{FILE_NAME}: name a run or a Hugging Face folder with a "
        f"tokenizer"
    )


def _written(recipe: PromptRecipe, prepared: Prepared, folder: Path) -> Path:
    begin = time.monotonic()
    file = folder / recipe.file_name
    special_tokens = recipe.template != "chat"
    # A model that pack --sft has taught Dolly's template writes this line before the end-of-text token.
    end = (DOLLY_END,) if recipe.template == "dolly" else ()
    counted = _Counted(
        replace(one, special_tokens=special_tokens, stop=(*one.stop, *end) if one.room else one.stop)
        for one in prepared.examples
    )
    if file.is_file():
        found = read_prompts(file).examples
        counted.examples, counted.tokens, what = len(found), sum(one.tokens for one in found), "found"
    else:
        write_prompts(folder, recipe, counted, prepared.notes)
        what = "written"
    print(
        f"{file}: {what}, {counted.examples} examples, {counted.tokens:,} tokens, {time.monotonic() - begin:.1f} s",
        flush=True,
    )
    return file


class _Counted:
    """Yields examples, and counts the examples and their tokens."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._source = examples
        self.examples = self.tokens = 0

    def __iter__(self) -> Iterator[Example]:
        for one in self._source:
            self.examples += 1
            self.tokens += one.tokens
            yield one
