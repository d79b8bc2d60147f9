"""The commands of ``exact-titan eval``. Each command imports its modules itself, because ``--help`` must be fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exact_titan.evaluation.engine_options import DEFAULTS, EngineOptions
from exact_titan.evaluation.options import SuiteOptions, Template

_SUITE_OPTIONS = SuiteOptions()


def run(
    models: Annotated[Positional[tuple[Path, ...]], arg(metavar="MODEL…", help_behavior_hint="")],
    *,
    out: Path,
    suites: Annotated[tuple[str, ...], arg(metavar="SUITES…")] = ("ruler", "nolima", "probe"),
    lengths: Annotated[tuple[int, ...], arg(metavar="TOKENS…", help_behavior_hint="")] = (),
    examples: int = 100,
    seed: int = 0,
    template: Template = "plain",
    names: Annotated[tuple[str, ...], arg(metavar="NAMES…", help_behavior_hint="(default: names of the folders)")] = (),
    window: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: that of the run)")] = None,
    trained: Annotated[tuple[int, ...], arg(metavar="TOKENS…", help_behavior_hint="(default: the paper's)")] = (),
    extrapolated: Annotated[tuple[int, ...], arg(metavar="TOKENS…", help_behavior_hint="")] = (),
    options: Annotated[SuiteOptions, arg(name="")] = _SUITE_OPTIONS,
    engine: Annotated[EngineOptions, arg(name="")] = DEFAULTS,
) -> None:
    """Evaluate models: prepare the prompts, generate the answers, score them, and report. `run` may be left out.

    The first model is the baseline of the report. The same command resumes an interrupted evaluation. The exit code is
    75 after Ctrl-C or SIGTERM.

    Example: exact-titan eval outputs/standard outputs/exact --lengths 4096 8192 16384 --out outputs/evaluation

    Args:
        models: Output folders of runs, checkpoints, or Hugging Face folders. For --engine server: folders with the
            tokenizers.
        out: Folder of the evaluation.
        suites: ruler, nolima, probe, qa.
        lengths: Context lengths in tokens, with the room of the answer, such as 4096 8192. The suite qa has no lengths.
        examples: Examples of a task at a length. Fewer examples are the first of more examples.
        seed: Seed of the examples.
        template: Text around a prompt. plain: none. dolly: the headings of Dolly. chat: the tokenizer's chat template.
        names: Names of the models in tables, one for each model.
        window: Training window of the models in tokens.
        trained: Context lengths inside the training window, in tokens.
        extrapolated: Context lengths beyond the training window, in tokens.
        options: See SuiteOptions.
        engine: See EngineOptions.
    """
    from exact_titan.evaluation.session import PromptOptions, evaluate, open_models
    from exact_titan.evaluation.suites import find_suite
    from exact_titan.reports.evaluation import write_report
    from exact_titan.reports.evaluation_lengths import common_lengths

    opened = open_models(models, out=out, names=names, window=window, options=engine)
    if any(find_suite(name).has_lengths for name in suites):
        common_lengths([one.model for one in opened], trained, extrapolated)
    prompts = PromptOptions(suites, lengths, examples, seed, template, options)
    evaluate(opened, out=out, prompts=prompts, options=engine)
    print(write_report([one.home for one in opened], out / "report", trained=trained, extrapolated=extrapolated))


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


def report(
    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="MODEL_FOLDER…", help_behavior_hint="")],
    *,
    out: Path | None = None,
    trained: tuple[int, ...] = (),
    extrapolated: tuple[int, ...] = (),
    paper: bool = False,
) -> None:
    """Compare models on the same prompts: tables and figures of the paper, with paired 95 % intervals.

    The first model is the baseline. The command prints the main tables. OUT/report gets report.html, report.md, the
    pictures, and a CSV of every number.

    Example: exact-titan eval report outputs/evaluation/models/standard outputs/evaluation/models/exact

    Args:
        folders: Folders of models: OUT/models/NAME of `exact-titan eval generate`. OUT means all its models.
        out: Folder of the report. The default is OUT/report of the first model.
        trained: Context lengths inside the training window, in tokens. The default is the paper's for the window.
        extrapolated: Context lengths beyond the training window, in tokens.
        paper: Show the paper's own figures too.
    """
    from exact_titan.reports.evaluation import write_report

    print(write_report(folders, out, trained=trained, extrapolated=extrapolated, paper=paper))


def table(
    folders: Annotated[Positional[tuple[Path, ...]], arg(metavar="DIR…", help_behavior_hint="")],
    *,
    out: Path | None = None,
    trained: tuple[int, ...] = (),
    extrapolated: tuple[int, ...] = (),
    paper: bool = False,
) -> None:
    """Lay several models out like the paper's Table 1: trained and extrapolated lengths of every suite.

    Models with the same tokenizer and window form a group. The first model of a group is the baseline of the others.

    Example: exact-titan eval table outputs/evaluation-qwen outputs/evaluation-llama --paper

    Args:
        folders: Folders of models, OUT/models/NAME, or folders OUT of evaluations, which mean all their models.
        out: Folder for table.html, table.md and table.csv. The default writes no files.
        trained: Context lengths inside the training window, in tokens. The default is the paper's for each window.
        extrapolated: Context lengths beyond the training window, in tokens.
        paper: Add the paper's own figures as rows.
    """
    from exact_titan.reports.evaluation_table import write_table

    print(write_table(folders, out, trained=trained, extrapolated=extrapolated, paper=paper))


COMMANDS: dict[str, Callable[..., int | None]] = {
    "run": run,
    "prepare": prepare,
    "generate": generate,
    "score": score,
    "report": report,
    "table": table,
}
