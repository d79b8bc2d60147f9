"""One generation from the command line: the model, its prompt sets, the engine, the answers."""

from collections.abc import Sequence
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import DEFAULTS, EngineOptions
from exact_titan.evaluation.engines import make_engine
from exact_titan.evaluation.generate import check_prompts
from exact_titan.evaluation.generate import generate as generate_answers
from exact_titan.evaluation.models import OpenedModel, open_model
from exact_titan.evaluation.prompt_sets import PROMPTS_FOLDER, read_prompts


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
    files = list(prompts) or sorted((out / PROMPTS_FOLDER).glob("*.jsonl"))
    if not files:
        raise InputError(f"{out / PROMPTS_FOLDER} has no prompt sets: make them with `exact-titan eval prepare`")
    sets = [read_prompts(file) for file in files]
    served = f"{options.server.url} {options.server.model}" if options.engine == "server" else None
    opened = open_model(source, out=out, name=name, window=window, rope=options.rope, served=served)
    for one in sets:
        check_prompts(one, opened.model)
    engine = make_engine(opened.folder, options)
    generate_answers(files, folder=opened.home, engine=engine, weights=opened.model.weights)
    return opened
