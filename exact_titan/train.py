"""The command ``torchrun --nproc_per_node=N -m exact_titan.train --config CONFIG [--section.option value …]``."""

import logging
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from exact_titan.errors import InputError
from exact_titan.launch import arguments, help_pages
from exact_titan.runs.exit_codes import Ended, ExitCode, remove_exit_code, write_exit_code
from exact_titan.titan.signals import StopSignals

if TYPE_CHECKING:
    from exact_titan.titan.run_config import RunConfig

_ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


def main(argv: list[str] | None = None) -> None:
    """Train, and exit with an :class:`~exact_titan.runs.exit_codes.ExitCode`. Wrong input prints one line.

    1. Check the arguments, and handle stop signals, before the import of torch.
    2. Read the config, and complete and check it (:func:`exact_titan.titan.preflight.complete`).
    3. Build the trainer and train to the last step, or to the step where the run is stopped.
    4. Export the weights, if ``export`` is set, and write the exit code into the run's folder.

    Without torchrun the run has one process.
    """
    for name, value in _ONE_PROCESS.items():
        os.environ.setdefault(name, value)

    with StopSignals() as signals:
        try:
            given = arguments.read(sys.argv[1:] if argv is None else argv)
        except InputError as error:
            _report(error)
            sys.exit(ExitCode.INPUT_ERROR)
        if os.environ["RANK"] == "0":
            print(help_pages.page(given, help_pages.MODULE) if given.help else f"Config: {given.source}", flush=True)
        if given.help:
            return
        if os.environ["RANK"] == "0":
            print("Loading torch and torchtitan", flush=True)

        from exact_titan.titan import cpu, torch_versions

        torch_versions.install()
        cpu.install()
        try:
            config, code = _train(given, signals)
        except InputError as error:
            _report(error)
            code = ExitCode.INPUT_ERROR
    if code != ExitCode.FINISHED:
        sys.exit(code)
    if os.environ["RANK"] == "0":
        if config.export:
            _export(config)
        write_exit_code(Path(config.dump_folder), code)


def _report(error: InputError) -> None:
    """Print one line on rank 0. All ranks read the same input and have the same error.

    The other ranks wait, because torchrun ends rank 0 after the exit of another rank.
    """
    if os.environ["RANK"] == "0":
        print(f"exact_titan.train: error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)


def _train(given: arguments.Arguments, signals: StopSignals) -> "tuple[RunConfig, int]":
    """Train to the end, or until the run is stopped. Return the config and the exit code."""
    from exact_titan.config import config_of
    from exact_titan.titan.preflight import with_rule

    config = with_rule(config_of(given))
    folder = Path(config.dump_folder)
    first = os.environ["RANK"] == "0"
    if first:
        remove_exit_code(folder)
    try:
        code = _run(config, signals)
    except InputError:
        if first and folder.is_dir():
            write_exit_code(folder, ExitCode.INPUT_ERROR)
        raise
    return config, code


def _run(config: "RunConfig", signals: StopSignals) -> int:
    import torch.distributed as dist
    from torchtitan.observability import structured_logger
    from torchtitan.tools.logging import init_logger, logger

    from exact_titan.titan.preflight import complete

    init_logger()
    first = os.environ["RANK"] == "0"
    if not first:
        logger.setLevel(logging.ERROR)
    config = complete(config)
    structured_logger.init_structured_logger(
        source="training", output_dir=config.dump_folder, enable=config.debug.enable_structured_logging
    )
    trainer = None
    code: int = ExitCode.FINISHED
    try:
        trainer = config.build()
        if config.checkpoint.create_seed_checkpoint:
            trainer.checkpointer.save(curr_step=0, last_step=True)
        else:
            signals.on_first(trainer.stop.ask)
            trainer.train()
    except Ended as ended:
        signals.ignore()
        code = ended.code
    finally:
        if trainer is not None:
            trainer.close()
    if first and code != ExitCode.FINISHED:
        write_exit_code(Path(config.dump_folder), code)
    # torchrun ends the other workers after the first exit. No worker exits before all workers have closed their files.
    dist.barrier()
    dist.destroy_process_group()
    return code


def _export(config: "RunConfig") -> None:
    from torchtitan.tools.logging import logger

    from exact_titan.runs.export import export

    export(Path(config.dump_folder), Path(config.export), checkpoints=config.checkpoint.folder)
    logger.info(f"The weights are in {config.export}, in Hugging Face's format")


if __name__ == "__main__":
    main()
