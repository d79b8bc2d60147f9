"""The commands of ``exact-titan eval``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exact_titan.evaluation.engine_options import DEFAULTS, EngineOptions


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


COMMANDS: dict[str, Callable[..., int | None]] = {"generate": generate, "score": score}
