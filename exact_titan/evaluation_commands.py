"""The commands of ``exact-titan eval``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


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


COMMANDS: dict[str, Callable[..., int | None]] = {"score": score}
