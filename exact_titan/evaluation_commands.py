"""The commands of ``exact-titan eval``. Each command imports its modules itself, because ``--help`` must be fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exact_titan.evaluation.engine_options import DEFAULTS, EngineOptions
from exact_titan.evaluation.options import SuiteOptions, Template

_SUITE_OPTIONS = SuiteOptions()


def prepare(
    suites: Annotated[Positional[tuple[str, ...]], arg(metavar="SUITES…", help_behavior_hint="")],
    *,
    model: Path,
    out: Path,
    lengths: Annotated[tuple[int, ...], arg(metavar="TOKENS…", help_behavior_hint="")] = (),
    examples: int = 100,
    seed: int = 0,
    template: Template = "plain",
    options: Annotated[SuiteOptions, arg(name="")] = _SUITE_OPTIONS,
) -> None:
    """Make the prompts of suites for the tokenizer of a model. Prompts that exist already are found again.

    The prompts are in OUT/prompts. A prompt fills 98 % of its length or more, with the room of the answer. A prompt
    that does not fit is refused and never cut.

    Example: exact-titan eval prepare ruler --model outputs/run-a --lengths 4096 8192 --out outputs/evaluation

    Args:
        suites: ruler, nolima, probe, qa.
        model: A run, a checkpoint or a Hugging Face folder. Only its tokenizer is read.
        out: Folder of the evaluation.
        lengths: Context lengths in tokens, with the room of the answer, such as 4096 8192. The suite qa has no lengths.
        examples: Examples of a task at a length. Fewer examples are the first of more examples.
        seed: Seed of the examples.
        template: Text around a prompt. plain: none. dolly: the headings of Dolly. chat: the tokenizer's chat template.
        options: See SuiteOptions.
    """
    from exact_titan.evaluation.prepare import prepare as prepare_suites
    from exact_titan.evaluation.prepare import tokenizer_folder
    from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer

    prepare_suites(
        suites,
        tokenizer=PromptTokenizer(tokenizer_folder(model), template),
        lengths=lengths,
        examples=examples,
        seed=seed,
        options=options,
        out=out,
    )


def score(
    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="MODEL_FOLDER…", help_behavior_hint="")],
) -> None:
    """Score the answers of models, and print the means by suite, task and context length.

    The scores depend on the prompts and the answers alone, so that the command can be repeated at any time. Examples
    without an answer are counted. The questions of such examples have no score.

    Example: exact-titan eval score outputs/evaluation/models/run-a

    Args:
        folders: Folders of models: OUT/models/NAME of `exact-titan eval generate`.
    """
    from exact_titan.evaluation.model_folder import read_model
    from exact_titan.evaluation.score import answered_prompts
    from exact_titan.evaluation.score import score as score_model
    from exact_titan.reports.scores import score_table

    models = [(read_model(folder), folder, answered_prompts(folder)) for folder in folders]
    for model, folder, prompts in models:
        files = score_model(folder, prompts)
        print(f"{model.name}: {len(files)} files of scores in {files[0].parent}\n\n{score_table(files)}\n", flush=True)


def generate(
    model: Annotated[Positional[Path], arg(metavar="MODEL", help_behavior_hint="")],
    *,
    out: Path,
    prompts: Annotated[tuple[Path, ...], arg(metavar="FILE…", help_behavior_hint="(default: all of OUT/prompts)")] = (),
    name: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: name of the folder)")] = None,
    window: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: that of the run)")] = None,
    engine: Annotated[EngineOptions, arg(name="")] = DEFAULTS,
) -> None:
    """Answer prompt sets with a model. The same command resumes an interrupted generation.

    Every answer is appended to OUT/models/NAME/answers at once. The exit code is 75 after Ctrl-C or SIGTERM.

    Example: exact-titan eval generate outputs/run-a --out outputs/evaluation

    Args:
        model: Output folder of a run, one of its checkpoints, or a Hugging Face folder. For --engine server: a folder
            with the tokenizer.
        out: Folder of the evaluation.
        prompts: Prompt sets of `exact-titan eval prepare`.
        name: Name of the model in tables.
        window: Training window of the model in tokens.
        engine: See EngineOptions.
    """
    from exact_titan.evaluation.session import generate as generate_answers

    generate_answers(model, out=out, prompts=prompts, name=name, window=window, options=engine)


COMMANDS: dict[str, Callable[..., int | None]] = {"prepare": prepare, "generate": generate, "score": score}
