"""The start of a run: its architecture and its first weights."""

from dataclasses import replace
from pathlib import Path

from tokenizers import Tokenizer
from torchtitan.tools.logging import logger

from exact_titan.documents.hub import hub_hint
from exact_titan.errors import InputError
from exact_titan.models import hf_config
from exact_titan.models.architecture import PRESETS, REPOSITORIES, Architecture
from exact_titan.models.hf_weights import check_weights
from exact_titan.models.rope_change import original_positions, with_rope
from exact_titan.runs.checkpoint_folders import step_of
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.runs.locations import is_checkpoint, run_of
from exact_titan.runs.run_folder import (
    MODEL_FOLDER,
    check_checkpoint,
    check_tokenizer_files,
    find_checkpoint,
    write_model_folder,
)
from exact_titan.runs.run_record import sampled_digest
from exact_titan.titan.model.decoder import DecoderModel, LlamaSizes
from exact_titan.titan.run_config import RunConfig


def resolve_architecture(config: RunConfig, *, tokenizer_vocab: int | None = None) -> Architecture:
    """Return the architecture that ``model``, ``start_from`` or ``architecture`` names, with the RoPE of ``rope``.

    Only config files are read.

    Args:
        tokenizer_vocab: number of ids of the dataset's tokenizer, for a model from scratch with ``vocab_size`` 0.

    Raises:
        InputError: naming the option or the file.
    """
    architecture = config._stage_before or _architecture(config, tokenizer_vocab)
    made = with_rope(architecture, config.rope, window=config.training.seq_len)
    if config.model and config.start_from and config._resume is None:
        path = Path(config.start_from)
        previous = (run_of(path) if is_checkpoint(path) else path) / MODEL_FOLDER
        if previous.is_dir():
            compare_with_previous(config, made, hf_config.read_architecture(previous))
    return made


def compare_with_previous(config: RunConfig, architecture: Architecture, previous: Architecture) -> None:
    """Refuse a ``model`` with another RoPE than the weights of ``start_from``, unless ``rope`` sets one for both.

    Args:
        architecture: the architecture of ``model`` with the RoPE of ``rope``.
        previous: the architecture of the previous stage.

    Raises:
        InputError: naming both.
    """
    try:
        continued = with_rope(previous, config.rope, window=config.training.seq_len)
    except InputError as error:
        raise InputError(f"start_from is {config.start_from}: {error}") from None
    if (continued.rope_theta, continued.rope_scaling) != (architecture.rope_theta, architecture.rope_scaling):
        raise InputError(
            f"model is {config.model}, and its RoPE ({architecture.rope}) is not the RoPE of start_from "
            f"{config.start_from} ({continued.rope}): leave model out to continue with the RoPE of start_from, or set "
            f"the same --rope options as in that stage"
        )


def refuse_rope(config: RunConfig) -> None:
    """Refuse ``rope`` for a model whose RoPE the recipe has written itself.

    Raises:
        InputError: naming the option.
    """
    for name, value in config.rope.given().items():
        raise InputError(
            f"rope.{name} is {value}, but the recipe has a model_spec of its own: set the RoPE in that model_spec"
        )


def _architecture(config: RunConfig, tokenizer_vocab: int | None) -> Architecture:
    if config.model:
        if config.architecture != LlamaSizes():
            raise InputError(f"model is {config.model}, and architecture is set too: give one of them")
        folder = Path(config.model)
        if folder.is_dir():
            return hf_config.read_architecture(folder)
        kept = Path(config.dump_folder) / MODEL_FOLDER
        if config._resume is not None and kept.is_dir():
            return hf_config.read_architecture(kept)
        if config.model in PRESETS:
            return PRESETS[config.model]
        raise InputError(
            f"model is {config.model!r}: there is no such folder, and the known models are {', '.join(PRESETS)}"
            + hub_hint(config.model, "for a model of the hub, run `hf download {} --local-dir FOLDER`")
        )
    if config.start_from:
        return hf_config.read_architecture(_previous_model(config))
    if config.rope.theta is not None:
        raise InputError(
            f"rope.theta is {config.rope.theta:g}, but the model is from scratch: set architecture.rope_theta"
        )
    if tokenizer_vocab is None and not config.architecture.vocab_size:
        raise InputError("architecture.vocab_size is 0, but there is no dataset to take the size from: set vocab_size")
    return config.architecture.architecture(seq_len=config.training.seq_len, tokenizer_vocab=tokenizer_vocab or 0)


def check_positions(config: RunConfig, architecture: Architecture) -> None:
    """Refuse a window that is longer than the positions of the model.

    Raises:
        InputError: naming both numbers.
    """
    if config.training.seq_len > architecture.max_positions:
        kind = architecture.rope_scaling.kind if architecture.rope_scaling else "yarn"
        factor = -(-config.training.seq_len // original_positions(architecture))
        base = "" if kind in ("linear", "yarn") and architecture.rope_scaling else "a larger --rope.theta, or "
        raise InputError(
            f"training.seq_len is {config.training.seq_len}, but the model has {architecture.max_positions} positions "
            f"(max_position_embeddings): use a shorter window, a model with more positions (from scratch: "
            f"architecture.max_positions), or another RoPE: {base}--rope.scaling {kind} --rope.factor {factor}"
        )


def with_initial_weights(config: RunConfig, architecture: Architecture) -> RunConfig:
    """Return the config with its first weights: their path in the checkpoint options, and their identity.

    The headers of the weights are checked. A run with its own checkpoint resumes from that checkpoint. Such a run does
    not need the first weights.

    Raises:
        InputError: naming the option, the file or the tensor.
    """
    checkpoint = config.checkpoint
    if config._resume is not None:
        check_checkpoint(config._resume.checkpoint, architecture)
        return config
    if config.start_from:
        stored = _previous_checkpoint(config)
        check_checkpoint(stored, architecture)
        initial, in_hf = stored, False
        weights = {"kind": "run", "path": str(stored), "step": step_of(stored)}
        files = [stored / DCP_METADATA, *stored.glob("*.distcp")]
    elif config.model:
        initial, in_hf = Path(config.model), True
        if not initial.is_dir():
            raise InputError(
                f"model is {config.model}, but there is no folder of that name with the weights: hf download "
                f"{REPOSITORIES[config.model]} --local-dir {config.model}"
            )
        check_weights(initial, architecture)
        weights = {"kind": "hugging_face", "path": str(initial), "step": None}
        files = list(initial.glob("*.safetensors"))
    else:
        return config
    if not checkpoint.enable:
        raise InputError(
            "checkpoint.enable is off, but the checkpointer reads the weights: set --checkpoint.load_only to read the "
            "weights and to save nothing"
        )
    path = str(initial.resolve())
    if checkpoint.initial_load_path not in (None, path):
        option = "model" if in_hf else "start_from"
        raise InputError(
            f"checkpoint.initial_load_path is {checkpoint.initial_load_path}, and {option} names weights too: give one "
            f"of them"
        )
    return replace(
        config,
        checkpoint=replace(checkpoint, initial_load_path=path, initial_load_in_hf=in_hf, initial_load_model_only=True),
        _first_weights={**weights, "digest": sampled_digest(files)},
    )


def write_model_copy(config: RunConfig, *, dataset_tokenizer: Path, eos_id: int) -> None:
    """Write the model's config.json and tokenizer into ``model/`` in the run's folder.

    A resume of the same model changes nothing. A new run replaces the folder of an earlier run, and a resume with a
    permitted change of the model replaces the folder with the model that it trains.

    Args:
        dataset_tokenizer: the tokenizer's folder in the packed dataset, for a model without a tokenizer.
        eos_id: id of the dataset's end-of-text token, for a model without a config.json.
    """
    run, folder = Path(config.dump_folder), _model_folder(config)
    kept = run / MODEL_FOLDER
    if config._resume is not None and kept.is_dir() and not config._resume.model_changed:
        return
    if folder is None and config.model and config._resume is not None and kept.is_dir():
        folder = kept
    if folder is not None:
        made = hf_config.read_config(folder)
        if config.rope.given() and config.model_spec is not None:
            made = hf_config.with_rope(made, config.model_spec.model.architecture)
        write_model_folder(run, made, _copied_tokenizer(folder, dataset_tokenizer))
    elif config.model_spec is not None and isinstance(config.model_spec.model, DecoderModel.Config):
        made = hf_config.make_config(config.model_spec.model.architecture, eos_token_id=eos_id)
        write_model_folder(run, made, dataset_tokenizer)


def check_tokenizer(config: RunConfig, *, dataset_tokenizer: Path) -> None:
    """Refuse a dataset whose token ids differ from the ids of the model's tokenizer.

    Raises:
        InputError: naming the first token that differs.
    """
    folder = _model_folder(config)
    if folder is None and config._resume is not None:
        folder = Path(config.dump_folder) / MODEL_FOLDER  # a model from scratch
    if folder is None:
        return
    ours, theirs = dataset_tokenizer / "tokenizer.json", folder / "tokenizer.json"
    if not theirs.is_file() or ours.read_bytes() == theirs.read_bytes():
        return
    packed, model = _vocabulary(ours), _vocabulary(theirs)
    for token, token_id in packed.items():
        if model.get(token) != token_id:
            raise InputError(
                f"the tokenizer of the dataset is not the tokenizer of {folder}: {token!r} has the id {token_id} "
                f"in the dataset and {model.get(token, 'none')} in the model; pack with --tokenizer {folder}"
            )


def check_copied_tokenizer(config: RunConfig, *, dataset_tokenizer: Path) -> None:
    """Refuse a tokenizer whose files a new run may not copy, before the process group exists.

    Raises:
        InputError: if a file is a link out of its folder, or is not what its name says.
    """
    if config._resume is None:
        check_tokenizer_files(_copied_tokenizer(_model_folder(config), dataset_tokenizer))


def _copied_tokenizer(folder: Path | None, dataset_tokenizer: Path) -> Path:
    """Return the folder of the tokenizer that a run copies: the model's, or the dataset's if the model has none."""
    return folder if folder is not None and (folder / "tokenizer.json").is_file() else dataset_tokenizer


def _vocabulary(file: Path) -> dict[str, int]:
    try:
        return Tokenizer.from_file(str(file)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises plain Exception
        raise InputError(f"{file} is not a Hugging Face tokenizer.json: {str(error).splitlines()[0]}") from None


def _model_folder(config: RunConfig) -> Path | None:
    """Folder with the config.json and the tokenizer of the model. None for a model from scratch."""
    if config.model and Path(config.model).is_dir():
        return Path(config.model)
    return _previous_model(config) if config.start_from else None


def _previous_checkpoint(config: RunConfig) -> Path:
    if Path(config.start_from).resolve() == Path(config.dump_folder).resolve():
        raise InputError(
            f"start_from is {config.start_from}, this run's own dump_folder: leave start_from out; the run resumes "
            f"from its own checkpoint"
        )
    return find_checkpoint(Path(config.start_from), on_skipped=logger.info)


def _previous_model(config: RunConfig) -> Path:
    # A resume does not need the previous stage any more. Its folder may be gone.
    kept = Path(config.dump_folder) / MODEL_FOLDER
    if config._resume is not None and kept.is_dir():
        return kept
    return run_of(_previous_checkpoint(config)) / MODEL_FOLDER
