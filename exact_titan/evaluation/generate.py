"""Answers of an engine to prompt sets, appended to the files of :mod:`exact_titan.evaluation.answers`.

1. Read all prompt sets, and refuse prompts or existing answers that do not belong to the model and the engine.
2. Lock the files of answers, so that two generations do not write into one file.
3. Order the examples. Prompts with the same first tokens follow each other, or prompts of like length form a batch.
4. Measure the engine, and print the number of tokens and the time.
5. Answer batch by batch. Each answer is appended at once.

The batches depend on the prompt set alone. A batch without all of its answers is computed again, and only the missing
answers are appended. An interrupted generation therefore gives the same records as an unbroken one.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.answers import ANSWERS_FOLDER, Answer, AnswersHeader, read_answers, read_answers_header
from exact_titan.evaluation.engines import Engine
from exact_titan.evaluation.examples import Example
from exact_titan.evaluation.model_folder import EvaluatedModel, read_model
from exact_titan.evaluation.progress import Progress, Work, estimate, works
from exact_titan.evaluation.prompt_sets import PromptSet, read_prompts
from exact_titan.evaluation.record_files import RecordAppender
from exact_titan.runs.exit_codes import Ended, ExitCode
from exact_titan.system import hangup
from exact_titan.system.file_errors import why
from exact_titan.system.folder_lock import locked


@dataclass(frozen=True)
class _Open:
    """A file of answers with missing answers."""

    file: Path
    header: AnswersHeader
    batches: list[list[Example]]
    """The batches of the whole prompt set that miss an answer."""
    answered: set[str]

    @property
    def left(self) -> list[Example]:
        return [one for batch in self.batches for one in batch if one.id not in self.answered]


def generate(prompts: Sequence[Path], *, folder: Path, engine: Engine, weights: str) -> None:
    """Answer prompt sets, or resume an interrupted generation.

    Args:
        prompts: files of prompt sets.
        folder: folder of the model, with ``model.json``. The answers go to ``folder/answers``.
        engine: the engine.
        weights: digest of the model's weights, or URL and model name of a server.

    Raises:
        InputError: before the first answer, if a prompt set does not fit the model, if a file has other answers, or if
            another process writes to a file.
        Ended: with the exit code 75 after Ctrl-C, SIGTERM or SIGHUP. All complete answers are on the disk.
    """
    model = read_model(folder)
    sets = [read_prompts(file) for file in prompts]
    for one in sets:
        check_prompts(one, model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_stopped_by_signals())
        opened = []
        for one in sets:
            file = folder / ANSWERS_FOLDER / one.file.name
            held, way_out = f"another process writes to {file}", "wait for its end, or stop it"
            stack.enter_context(locked(file.with_name(f".{file.name}.lock"), held, way_out))
            header = AnswersHeader(one.sha256, weights, engine.settings)
            opened.append(_open(file, header, one, engine))
        _answer(engine, opened)


def check_prompts(prompts: PromptSet, model: EvaluatedModel) -> None:
    """Refuse a prompt set that the model cannot answer.

    Raises:
        InputError: if the prompts are of another tokenizer, or longer than the positions of the model.
    """
    if prompts.recipe.tokenizer_sha256 != model.tokenizer_sha256:
        raise InputError(
            f"{prompts.file} has prompts for another tokenizer (sha256 {prompts.recipe.tokenizer_sha256[:12]}) than "
            f"that of {model.source} ({model.tokenizer_sha256[:12]}): make prompts for this tokenizer with "
            f"`exact-titan eval prepare`"
        )
    needed, longest = max(((one.tokens + one.room, one.id) for one in prompts.examples), default=(0, ""))
    model.check_positions(needed, f"{prompts.file}: example {longest} needs {needed:,} positions, but")


def batches(examples: Sequence[Example], engine: Engine) -> list[list[Example]]:
    """Return all examples in the order of the engine, in batches."""
    # Sorting by the text brings the longest shared beginnings together: book, then depth, then question.
    ordered = sorted(examples, key=lambda one: (one.prefix, one.tokens if engine.by_length else 0, one.prompt))
    return [ordered[start : start + engine.batch] for start in range(0, len(ordered), engine.batch)]


def _open(file: Path, header: AnswersHeader, prompts: PromptSet, engine: Engine) -> _Open:
    answered: set[str] = set()
    if _has_line(file):
        _check_same(file, read_answers_header(file), header)
        answered = set(read_answers(file, prompts))
    missing = [one for one in batches(prompts.examples, engine) if any(two.id not in answered for two in one)]
    return _Open(file, header, missing, answered)


def _has_line(file: Path) -> bool:
    """Return whether a file has a complete first line. A process that was killed at its start leaves none."""
    if not file.is_file():
        return False
    with file.open("rb") as lines:
        return lines.readline().endswith(b"\n")


def _check_same(file: Path, was: AnswersHeader, now: AnswersHeader) -> None:
    """Refuse to append to answers of another prompt set, of other weights or of other settings."""
    way_out = "give the model another --name"
    if was.prompts_sha256 != now.prompts_sha256:
        raise InputError(f"{file} has the answers to another prompt set of this name: {way_out}")
    if was.weights != now.weights:
        raise InputError(f"{file} has the answers of other weights ({was.weights[:12]}): {way_out}")
    for key in dict.fromkeys([*now.engine, *was.engine]):
        one, other = was.engine.get(key), now.engine.get(key)
        if one != other:
            raise InputError(
                f"{file} has answers of the engine with {key} {one!r}, and now {key} is {other!r}: {way_out}"
            )


def _answer(engine: Engine, opened: Sequence[_Open]) -> None:
    """Answer everything that is missing."""
    left = [one.left for one in opened]
    known = sum(len(one.answered) for one in opened)
    if not any(left):
        print(f"all {known:,} answers exist already", flush=True)
        return
    speed = engine.measure()
    costs: list[Work] = [work for some in left for work in works(some, chunk=engine.chunk)]
    if known:
        print(f"{known:,} answers exist already", flush=True)
    print(estimate(sum(costs, Work()), len(costs), speed), flush=True)
    places = {(one.file, example.id): place for place, (one, example) in enumerate(_all(opened))}
    progress = Progress(costs, speed)
    written = 0
    try:
        for one in opened:
            with RecordAppender(one.file, one.header.as_json()) as out:
                for batch in one.batches:
                    for answer in engine.answer(batch):
                        if answer.id not in one.answered:
                            _append(out, one.file, answer)
                            progress.add(places[one.file, answer.id])
                            written += 1
    finally:
        progress.close()
        engine.close()
    print(f"{written:,} answers in {opened[0].file.parent}", flush=True)
    if written < len(costs):
        print(f"{len(costs) - written:,} examples have no answer: the engine measures no log-likelihood", flush=True)


def _append(out: RecordAppender, file: Path, answer: Answer) -> None:
    try:
        out.append(answer.as_json())
    except OSError as error:
        raise InputError(
            f"{file} cannot be written ({why(error)}): make room, and repeat the command, which resumes the generation"
        ) from None


def _all(opened: Sequence[_Open]) -> Iterator[tuple[_Open, Example]]:
    for one in opened:
        for example in one.left:
            yield one, example


class _Stopped(BaseException):
    """A signal has stopped the generation."""


@contextlib.contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """End cleanly after SIGTERM, SIGHUP and Ctrl-C. The answer that is being computed is lost. All others are kept."""

    terminals = hangup.Terminals()

    def stop(number: int, frame: Any) -> None:
        if number == signal.SIGHUP:
            terminals.leave()
        raise _Stopped

    main = threading.current_thread() is threading.main_thread()
    handled = (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hangup.is_handled() else []))
    before = {number: signal.signal(number, stop) for number in handled if main}
    try:
        yield
    except _Stopped:
        print("stopped; the same command resumes the generation", flush=True)
        raise Ended(ExitCode.SAVED) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
