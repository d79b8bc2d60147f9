"""The command ``torchrun --nproc_per_node=N -m exact_titan.train --config CONFIG [--section.option value …]``."""

import contextlib
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from exact_titan import entry
from exact_titan.errors import InputError, print_error
from exact_titan.launch import arguments, help_pages
from exact_titan.runs.exit_codes import Ended, ExitCode, remove_exit_code, write_exit_code
from exact_titan.runs.run_lock import has_files, lock_run
from exact_titan.system.file_errors import as_input_errors
from exact_titan.system.terminal import drop_output_errors
from exact_titan.titan.agent_watch import watch_agent
from exact_titan.titan.logs import start_logging
from exact_titan.titan.signals import StopSignals

if TYPE_CHECKING:
    from exact_titan.titan.agreement import Agreement
    from exact_titan.titan.run_config import RunConfig

logger = logging.getLogger(__name__)

_ONE_PROCESS = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}


def main(argv: list[str] | None = None) -> None:
    """Train, and exit with an :class:`~exact_titan.runs.exit_codes.ExitCode`. Wrong input prints one line.

    :func:`exact_titan.entry.run` is the frame for errors and for the text on the terminal.
    """
    if code := entry.run("exact_titan.train", lambda: _main(sys.argv[1:] if argv is None else argv)):
        sys.exit(code)


def _main(argv: list[str]) -> int:
    """Train, and return the exit code.

    1. Check the arguments, and handle stop signals, before the import of torch.
    2. Read the config, and lock the run's folder (:mod:`exact_titan.runs.run_lock`).
    3. Complete and check the config (:func:`exact_titan.titan.preflight.complete`).
    4. Build the trainer and train to the last step, or to the step where the run is stopped.
    5. Export the weights, if ``export`` is set, and write the exit code into the run's folder.

    Without torchrun the run has one process.
    """
    for name, value in _ONE_PROCESS.items():
        os.environ.setdefault(name, value)

    start_logging(int(os.environ["RANK"]))
    with contextlib.ExitStack() as lock:
        return _start(argv, lock)


def _start(argv: list[str], lock: contextlib.ExitStack) -> int:
    """Do the steps of :func:`_main`. ``lock`` receives the lock of the run's folder."""
    with StopSignals() as signals:
        watch_agent(signals)
        given = _arguments(argv)
        if not isinstance(given, InputError):
            if os.environ["RANK"] == "0":
                print(
                    help_pages.page(given, help_pages.MODULE) if given.help else f"Config: {given.source}", flush=True
                )
            if given.help:
                return ExitCode.FINISHED
        if os.environ["RANK"] == "0":
            print("Loading torch and torchtitan", flush=True)

        from exact_titan.titan import cpu, torch_versions

        torch_versions.install()
        cpu.install()
        from exact_titan.titan.agreement import Agreement

        agreement = Agreement.of_environment()
        try:
            with as_input_errors():
                config, code = _train(given, signals, agreement, lock)
        except InputError as error:
            agreement.report(error)
            return ExitCode.INPUT_ERROR
    if code == ExitCode.FINISHED and os.environ["RANK"] == "0":
        code = _export_at_end(config) if config.export else ExitCode.FINISHED
        write_exit_code(Path(config.dump_folder), code)
    return code


def _arguments(argv: list[str]) -> arguments.Arguments | InputError:
    """Check the arguments without torch. Rank 0 ends the run at once if an argument is wrong.

    Another rank returns the mistake for the agreement of the ranks: only this machine may lack the config.
    """
    try:
        with as_input_errors():
            return arguments.read(argv)
    except InputError as error:
        if os.environ["RANK"] != "0":
            return error
        print_error("exact_titan.train", error)
        sys.exit(ExitCode.INPUT_ERROR)


def _train(
    given: arguments.Arguments | InputError, signals: StopSignals, agreement: "Agreement", lock: contextlib.ExitStack
) -> "tuple[RunConfig, int]":
    """Lock the run's folder, and train to the end, or until the run is stopped. Return the config and the exit code."""
    from exact_titan.config import config_of
    from exact_titan.titan.preflight import with_rule

    def options() -> "RunConfig":
        if isinstance(given, InputError):
            raise given
        return with_rule(config_of(given))

    config = agreement.check("options", options)
    folder = Path(config.dump_folder)

    def hold_folder() -> None:
        with as_input_errors():
            lock.enter_context(lock_run(folder))
            remove_exit_code(folder)

    # A refused start changes nothing in the folder of the other start.
    agreement.on_rank_0("lock", hold_folder)
    try:
        with as_input_errors():
            code = _run(config, signals, agreement)
    except InputError:
        # Any rank writes the code: rank 0 may wait in a collective call until torchrun ends rank 0. Bad input makes no
        # new folder. A batch system that looks for the code of a large job must find a complaint of a single rank.
        # The message about the bad input matters more than a folder that cannot be written.
        with contextlib.suppress(OSError):
            if agreement.is_disputed:
                folder.mkdir(parents=True, exist_ok=True)
            if agreement.is_disputed or has_files(folder):
                write_exit_code(folder, ExitCode.INPUT_ERROR)
        raise
    return config, code


def _run(config: "RunConfig", signals: StopSignals, agreement: "Agreement") -> int:
    import torch.distributed as dist
    from torchtitan.observability import structured_logger

    from exact_titan.titan.identity import shared_values
    from exact_titan.titan.logs import open_log_file
    from exact_titan.titan.preflight import complete
    from exact_titan.titan.resume import is_finished

    completed = agreement.check("run", lambda: complete(config))
    agreement.same("data", shared_values(completed))
    if is_finished(completed):
        logger.info(f"{completed.training.steps} of {completed.training.steps} steps are done: nothing to train")
        return ExitCode.FINISHED
    open_log_file(Path(completed.dump_folder), int(os.environ["RANK"]))
    drop_output_errors()
    structured_logger.init_structured_logger(
        source="training", output_dir=completed.dump_folder, enable=completed.debug.enable_structured_logging
    )
    trainer = None
    code: int = ExitCode.FINISHED
    try:
        trainer = completed.build()
        if completed.checkpoint.create_seed_checkpoint:
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
    if os.environ["RANK"] == "0" and code != ExitCode.FINISHED:
        write_exit_code(Path(completed.dump_folder), code)
    # torchrun ends the other workers after the first exit. No worker exits before all workers have closed their files.
    dist.barrier()
    dist.destroy_process_group()
    return code


def _export_at_end(config: "RunConfig") -> ExitCode:
    """Export the last checkpoint. Return the exit code of the run: after a signal, the same command exports again."""
    try:
        with as_input_errors():
            _export(config)
    except InputError as error:
        print_error("exact_titan.train", error)
        return ExitCode.INPUT_ERROR
    except (KeyboardInterrupt, SystemExit):
        logger.info(f"the export to {config.export} is stopped; the same command exports the saved run")
        return ExitCode.SAVED
    return ExitCode.FINISHED


def _export(config: "RunConfig") -> None:
    from exact_titan.runs.export import export

    if Path(config.export).exists():  # only a start with nothing to train gets here
        logger.info(f"{config.export} exists already and is not written again")
        return
    export(
        Path(config.dump_folder),
        Path(config.export),
        checkpoints=config.checkpoint.folder,
        verify=config.checkpoint.verify_on_load,
    )
    logger.info(f"The weights are in {config.export}, in Hugging Face's format")


if __name__ == "__main__":
    main()
