"""The folders that a run will write, tried before the process group exists and before hours of training."""

from collections.abc import Iterator
from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.destinations import check_room, check_writable
from exact_titan.runs.export import DTYPES, check_out
from exact_titan.runs.locations import check_locations
from exact_titan.runs.run_folder import MODEL_FOLDER
from exact_titan.titan.resume import is_finished
from exact_titan.titan.run_config import RunConfig


def check_destinations(config: RunConfig) -> None:
    """Refuse folders that the run cannot create or write, and an export folder that exists or gets other files.

    Raises:
        InputError: naming the option, the folder and the way out.
    """
    run = Path(config.dump_folder)
    written = dict(_written(config))
    for option, folder in written.items():
        check_writable(folder, option)
    if "checkpoint.folder" in written:
        check_locations(run, written["checkpoint.folder"])
    if not config.export or is_finished(config):
        return
    check_out(Path(config.export))
    export = Path(config.export).resolve()
    for option, folder in {**written, "the model folder of the run": run / MODEL_FOLDER}.items():
        if folder.resolve().is_relative_to(export):
            raise InputError(f"export is {config.export}, but {option} is {folder}: choose another folder for export")
    if config.checkpoint.last_save_in_hf or not _saves(config):
        raise InputError(
            "export is set and reads the last checkpoint: enable checkpoint, without load_only or last_save_in_hf"
        )


def check_disks(config: RunConfig, parameters: int) -> None:
    """Refuse a run whose next checkpoint and export do not fit on their disks.

    The sizes are lower bounds: the weights, the two states of AdamW and the moving average.

    Args:
        config: the config.
        parameters: number of parameters of the model.

    Raises:
        InputError: naming the option, the folder and the numbers of bytes.
    """
    if _saves(config) and not is_finished(config):
        saved = Path(config.dump_folder) / config.checkpoint.folder
        check_room(saved, _checkpoint_bytes(config, parameters), "checkpoint.folder")
    if config.export and not Path(config.export).exists():
        check_room(Path(config.export), parameters * DTYPES["bfloat16"].itemsize, "export")


def _checkpoint_bytes(config: RunConfig, parameters: int) -> int:
    checkpoint = config.checkpoint
    if checkpoint.last_save_model_only and checkpoint.interval >= config.training.steps:
        return parameters * DTYPES[checkpoint.export_dtype].itemsize
    weight = DTYPES[config.training.dtype].itemsize
    state = min(weight, DTYPES["bfloat16"].itemsize if "bf16" in config.optimizer.implementation else weight)
    return parameters * (weight + 2 * state + (weight if config.ema.decay else 0))


def _saves(config: RunConfig) -> bool:
    return config.checkpoint.enable and not config.checkpoint.load_only


def _written(config: RunConfig) -> Iterator[tuple[str, Path]]:
    """Yield each option that names a folder, and the folder that the run will write for the option."""
    run = Path(config.dump_folder)
    yield "dump_folder", run
    if _saves(config):
        yield "checkpoint.folder", run / config.checkpoint.folder
    if config.metrics.enable_tensorboard or config.metrics.enable_wandb:
        yield "metrics.save_tb_folder", run / config.metrics.save_tb_folder
    if config.comm.trace_buf_size:
        yield "comm.save_traces_folder", run / config.comm.save_traces_folder
    if config.profiler.enable_profiling:
        yield "profiler.save_traces_folder", run / config.profiler.save_traces_folder
    if config.profiler.enable_memory_snapshot:
        yield "profiler.save_memory_snapshot_folder", run / config.profiler.save_memory_snapshot_folder
    if config.debug.save_config_file is not None:
        yield "debug.save_config_file", (run / config.debug.save_config_file).parent
