"""The steps of an evaluation from the command line: one generation, or all steps for several models."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import DEFAULTS, EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.engines.completions import Client
from exact_titan.evaluation.generate import generate as generate_answers
from exact_titan.evaluation.model_folder import EvaluatedModel
from exact_titan.evaluation.models import OpenedModel, open_model
from exact_titan.evaluation.options import SuiteOptions, Template
from exact_titan.evaluation.prepare import prepare
from exact_titan.evaluation.prompt_sets import PROMPTS_FOLDER, read_recipe
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.score import score
from exact_titan.evaluation.suites import find_suite


@dataclass(frozen=True)
class PromptOptions:
    """Which prompts an evaluation asks.

    Attributes:
        suites: names of the suites.
        lengths: context lengths in tokens, for the suites with lengths.
        examples: number of examples of a task at a length.
        seed: seed of the examples.
        template: text around every prompt.
        options: the options of the suites.
    """

    suites: Sequence[str]
    lengths: Sequence[int]
    examples: int
    seed: int
    template: Template
    options: SuiteOptions


def open_models(
    sources: Sequence[Path],
    *,
    out: Path,
    names: Sequence[str] = (),
    window: int | None = None,
    options: EngineOptions = DEFAULTS,
) -> list[OpenedModel]:
    """Return the models of runs and of folders, and write their ``model.json``.

    Args:
        sources: runs, checkpoints and Hugging Face folders.
        out: folder of the evaluation.
        names: names of the models, one for each source. Empty: the names of the folders.
        window: training window in tokens. None: that of each run.
        options: the engine and its settings.

    Raises:
        InputError: if two models have one name, or if a model is wrong.
    """
    if not sources:
        raise InputError("no model is named: name runs, checkpoints or Hugging Face folders")
    if names and len(names) != len(sources):
        raise InputError(f"--names has {len(names)} names for {len(sources)} models: name every model")
    given = names or [one.resolve().name for one in sources]
    if twice := next((one for one in given if given.count(one) > 1), None):
        raise InputError(f"two models have the name {twice!r}: name every model with --names")
    return [
        _open(source, out=out, name=name, window=window, options=options)
        for source, name in zip(sources, names or itertools.repeat(None), strict=False)
    ]


def evaluate(
    models: Sequence[OpenedModel], *, out: Path, prompts: PromptOptions, options: EngineOptions = DEFAULTS
) -> None:
    """Prepare the prompts, answer them with every model, and score the answers.

    All prompts are made before the first answer. Models with one tokenizer get the same prompts. The same call resumes
    an interrupted evaluation.

    Args:
        models: the models.
        out: folder of the evaluation.
        prompts: which prompts the evaluation asks.
        options: the engine and its settings.

    Raises:
        InputError: before the first answer, if an option, a file or a model is wrong.
        Ended: with the exit code 75 after Ctrl-C or SIGTERM.
    """
    _check_lengths(models, prompts)
    tokenizers = [PromptTokenizer(one.folder, prompts.template) for one in models]
    files: dict[tuple[str, str | None], list[Path]] = {}
    for tokenizer in tokenizers:
        key = (tokenizer.sha256, tokenizer.chat_template_sha256)
        if key not in files:
            files[key] = prepare(
                prompts.suites,
                tokenizer=tokenizer,
                lengths=prompts.lengths,
                examples=prompts.examples,
                seed=prompts.seed,
                options=prompts.options,
                out=out,
            )
    engines = [make_engine(one.folder, options) for one in models]
    for model, tokenizer, engine in zip(models, tokenizers, engines, strict=True):
        chosen = files[tokenizer.sha256, tokenizer.chat_template_sha256]
        print(f"model        {model.model.name}: {model.model.source}", flush=True)
        generate_answers(chosen, folder=model.home, engine=engine, weights=model.model.weights)
        score(model.home, chosen)


def _check_lengths(models: Sequence[OpenedModel], prompts: PromptOptions) -> None:
    """Refuse a length beyond the positions of a model, before the prompts are made.

    Raises:
        InputError: naming the length and the model.
    """
    if not any(find_suite(name).has_lengths for name in prompts.suites):
        return
    longest = max(prompts.lengths, default=0)
    for one in models:
        one.model.check_positions(longest, f"--lengths {longest}:")


def generate(
    source: Path,
    *,
    out: Path,
    prompts: Sequence[Path] = (),
    name: str | None = None,
    window: int | None = None,
    options: EngineOptions = DEFAULTS,
) -> OpenedModel:
    """Answer prompt sets with the model of a run or of a folder.

    Args:
        source: output folder of a run, one of its checkpoints, or a Hugging Face folder.
        out: folder of the evaluation.
        prompts: files of prompt sets. Empty: all prompt sets of ``out`` for the tokenizer of the model.
        name: name of the model in tables. None: the name of the folder.
        window: training window in tokens. None: that of the run.
        options: the engine and its settings.

    Returns:
        The model. Its ``home`` has the answers.

    Raises:
        InputError: before the first answer, if an option, a file or the model is wrong.
        Ended: with the exit code 75 after Ctrl-C or SIGTERM.
    """
    opened = _open(source, out=out, name=name, window=window, options=options)
    chosen = list(prompts) or _prompts_of(out / PROMPTS_FOLDER, opened.model)
    engine = make_engine(opened.folder, options)
    generate_answers(chosen, folder=opened.home, engine=engine, weights=opened.model.weights)
    return opened


def _prompts_of(folder: Path, model: EvaluatedModel) -> list[Path]:
    """Return all prompt sets of a folder for the tokenizer of the model, and say how many sets are left out.

    Raises:
        InputError: if there is none.
    """
    files = sorted(folder.glob("*.jsonl"))
    found = [file for file in files if read_recipe(file).tokenizer_sha256 == model.tokenizer_sha256]
    if not found:
        raise InputError(
            f"{folder} has no prompt sets for the tokenizer of {model.source}: make prompts with "
            f"`exact-titan eval prepare`"
        )
    if len(found) < len(files):
        print(f"{len(files) - len(found)} of {len(files)} prompt sets are for other tokenizers and are left out")
    return found


def _open(source: Path, *, out: Path, name: str | None, window: int | None, options: EngineOptions) -> OpenedModel:
    for flag, value in (("--batch", options.batch), ("--prefill-chunk", options.prefill_chunk), ("--window", window)):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}: the number must be 1 or more")
    served = None
    if options.engine == "server":
        client = Client(options.server)
        served = f"{client.url} {client.model()}"
    return open_model(source, out=out, name=name, window=window, rope=options.rope, served=served)
