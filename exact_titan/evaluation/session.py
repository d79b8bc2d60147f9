"""One generation from the command line: the model, its prompt sets, the engine, the answers."""

from collections.abc import Sequence
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import DEFAULTS, EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.generate import generate as generate_answers
from exact_titan.evaluation.model_folder import EvaluatedModel
from exact_titan.evaluation.models import OpenedModel, open_model
from exact_titan.evaluation.prompt_sets import PROMPTS_FOLDER, read_recipe


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
    if options.batch is not None and options.batch < 1:
        raise InputError(f"--batch is {options.batch}: it must be 1 or more")
    served = f"{options.server.url} {options.server.model}" if options.engine == "server" else None
    opened = open_model(source, out=out, name=name, window=window, rope=options.rope, served=served)
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
