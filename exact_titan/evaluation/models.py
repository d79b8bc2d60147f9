"""From a run, a checkpoint or a Hugging Face folder to the model of an evaluation.

1. Find the weights: the last complete checkpoint of a run, or the safetensors of a Hugging Face folder.
2. Compute their digest. An evaluation knows a model again by the digest.
3. Export the checkpoint of a run once, into ``OUT/models/NAME/hf``.
4. Where the user extends RoPE, make ``OUT/models/NAME/hf-extended``: links to the files, and another ``config.json``.
5. Write ``OUT/models/NAME/model.json``.
"""

import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exact_titan.errors import InputError
from exact_titan.evaluation.engine_options import NO_EXTENSION, RopeOptions
from exact_titan.evaluation.model_folder import FILE_NAME, MODELS_FOLDER, EvaluatedModel, read_model
from exact_titan.evaluation.prompt_tokenizer import PromptTokenizer
from exact_titan.evaluation.rope import extended_config
from exact_titan.models import hf_config
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.runs.destinations import check_writable
from exact_titan.runs.locations import run_of
from exact_titan.runs.run_record import RunRecord, read_record, sampled_digest
from exact_titan.system.atomic_files import unfinished_folder

logger = logging.getLogger(__name__)

_EXPORT = "hf"
_EXTENDED = "hf-extended"


@dataclass(frozen=True)
class OpenedModel:
    """A model that an engine can load.

    Attributes:
        folder: a Hugging Face folder with weights, config and tokenizer.
        home: folder of the model in the evaluation, ``OUT/models/NAME``.
        model: the content of ``model.json``.
    """

    folder: Path
    home: Path
    model: EvaluatedModel


def open_model(
    source: Path,
    *,
    out: Path,
    name: str | None = None,
    window: int | None = None,
    rope: RopeOptions = NO_EXTENSION,
    served: str | None = None,
) -> OpenedModel:
    """Return the model of a run or of a Hugging Face folder, and write its ``model.json``.

    Args:
        source: output folder of a run, one checkpoint of a run, or a Hugging Face folder.
        out: folder of the evaluation.
        name: name of the model in tables. None: the name of the folder.
        window: training window in tokens. None: that of the run, or unknown.
        rope: extension of RoPE.
        served: URL and model name of a server that runs the model. ``source`` then gives the tokenizer alone.

    Raises:
        InputError: if the source is no model, if it has no tokenizer, or if ``out`` has another model of this name.
    """
    check_writable(out, "--out")
    if not source.is_dir():
        raise InputError(f"{source}: no such folder: name a run, a checkpoint or a Hugging Face folder")
    found = _served(source, served) if served is not None else _found(source)
    tokenizer = PromptTokenizer(found.tokenizer)
    chosen = name or _default_name(source, rope)
    if Path(chosen).name != chosen or chosen.startswith("."):
        raise InputError(f"--name is {chosen!r}: the name of a model is the name of a folder, without / and .")
    positions = found.positions
    if rope.scaling is not None:
        positions = extended_config(found.config, rope, found.tokenizer / hf_config.FILE_NAME)[
            "max_position_embeddings"
        ]
    home = out / MODELS_FOLDER / chosen
    was = read_model(home) if (home / FILE_NAME).is_file() else None
    model = EvaluatedModel(
        name=chosen,
        source=str(source),
        window=next((one for one in (window, found.window, was.window if was else None) if one is not None), None),
        positions=positions,
        step=found.step,
        weights=found.weights,
        tokenizer_sha256=tokenizer.sha256,
    )
    _refuse_other(model, was, home)
    model.write(home)
    folder = source if found.checkpoint is None else _export(found, home)
    if rope.scaling is not None:
        folder = _extended(folder, home, rope)
    return OpenedModel(folder, home, model)


@dataclass(frozen=True)
class _Found:
    """A model on the disk. ``tokenizer`` is the folder with config.json and tokenizer."""

    tokenizer: Path
    config: dict[str, Any]
    weights: str
    positions: int | None = None
    window: int | None = None
    step: int | None = None
    checkpoint: Path | None = None
    dtype: str = "float32"


def _found(source: Path) -> _Found:
    if (source / hf_config.FILE_NAME).is_file() and not (source / DCP_METADATA).is_file():
        return _of_folder(source)
    from exact_titan.runs.run_folder import MODEL_FOLDER, find_checkpoint  # this import loads torch
    from exact_titan.runs.weights_digest import weights_digest

    checkpoint = find_checkpoint(source, on_skipped=logger.warning)
    run = run_of(checkpoint)
    model = run / MODEL_FOLDER
    if not model.is_dir():
        raise InputError(f"{model} is missing: an evaluation reads the architecture and the tokenizer from that folder")
    config = hf_config.read_config(model)
    record = read_record(checkpoint) or read_record(run)
    return _Found(
        tokenizer=model,
        config=config,
        weights=weights_digest(checkpoint) or sampled_digest(checkpoint.glob("*.distcp")),
        positions=_positions(config),
        window=_window(record),
        step=int(checkpoint.name.rpartition("-")[2]) if checkpoint.name.rpartition("-")[2].isdigit() else None,
        checkpoint=checkpoint,
        dtype=_dtype(record),
    )


def _of_folder(folder: Path) -> _Found:
    from safetensors import SafetensorError

    from exact_titan.runs.weights_digest import weights_digest  # this import loads torch

    config = hf_config.read_config(folder)
    files = [file for file in sorted(folder.glob("*.safetensors")) if file.is_file()]
    if not files:
        pickled = next(iter(sorted(folder.glob("pytorch_model*.bin"))), None)
        because = f"; {pickled.name} is not read, because a pickle can run code" if pickled else ""
        raise InputError(
            f"{folder} has no weights (*.safetensors){because}: name a run, a checkpoint or a Hugging Face folder with "
            f"safetensors"
        )
    try:
        digest = weights_digest(folder) or sampled_digest(files)
    except SafetensorError as error:
        raise InputError(f"{folder}: a file of weights is damaged ({error}): copy the folder again") from None
    return _Found(folder, config, digest, positions=_positions(config))


def _served(folder: Path, served: str) -> _Found:
    return _Found(folder, {}, served)


def _positions(config: dict[str, Any]) -> int | None:
    value = config.get("max_position_embeddings")
    return value if isinstance(value, int) else None


def _window(record: RunRecord | None) -> int | None:
    """Return the largest window that the weights were trained with: of the run, and of the runs that it started from.

    A short fine-tuning after long-context training does not change the trained lengths.
    """
    if record is None:
        return None
    before: Path | None = Path(record.weights.get("path") or "") if record.weights.get("kind") == "run" else None
    earlier = read_record(before) if before is not None and before.is_dir() else None
    windows = [record.data.get("window"), _window(earlier)]
    return max((one for one in windows if isinstance(one, int)), default=None)


def _dtype(record: RunRecord | None) -> str:
    """Return the data type in which the run computed."""
    training = {} if record is None else record.config.get("training", {})
    dtype = training.get("mixed_precision_param") or training.get("dtype")
    return dtype if dtype in ("bfloat16", "float16", "float32") else "float32"


def _default_name(source: Path, rope: RopeOptions) -> str:
    name = source.resolve().name
    return name if rope.scaling is None else f"{name}-{rope.scaling}-{rope.factor:g}"


def _refuse_other(model: EvaluatedModel, was: EvaluatedModel | None, home: Path) -> None:
    """Refuse a folder of another model with this name.

    Raises:
        InputError: naming the folder.
    """
    if was is None:
        return
    same = (was.weights, was.positions, was.tokenizer_sha256) == (
        model.weights,
        model.positions,
        model.tokenizer_sha256,
    )
    if not same:
        raise InputError(
            f"{home} has another model of this name ({was.source}, step {was.step}): name this model with --name, or "
            f"choose another --out"
        )


def _export(found: _Found, home: Path) -> Path:
    """Return the export of a checkpoint. An export that exists belongs to the weights, as model.json says."""
    folder = home / _EXPORT
    if not folder.is_dir():
        from exact_titan.runs.export import export  # this import loads torch

        assert found.checkpoint is not None
        print(f"exporting {found.checkpoint} to {folder} ({found.dtype})", flush=True)
        export(found.checkpoint, folder, dtype=found.dtype)  # type: ignore[arg-type]
    return folder


def _extended(folder: Path, home: Path, rope: RopeOptions) -> Path:
    """Return a folder with links to the files of the model, and a config.json with the extended RoPE."""
    target = home / _EXTENDED
    with unfinished_folder(target) as partial:
        for file in folder.iterdir():
            if file.name != hf_config.FILE_NAME and file.is_file():
                (partial / file.name).symlink_to(file.resolve())
        config = extended_config(hf_config.read_config(folder), rope, folder / hf_config.FILE_NAME)
        hf_config.write_config(partial, config)
        shutil.rmtree(target, ignore_errors=True)
    return target
