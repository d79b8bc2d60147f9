"""The checkpoint that a start continues. :mod:`exact_titan.titan.changes` compares the options with the checkpoint."""

from pathlib import Path

from exact_titan.errors import InputError
from exact_titan.runs.checkpoint_folders import Checkpoints, find_checkpoints
from exact_titan.runs.checkpoint_reader import DCP_METADATA
from exact_titan.runs.checkpoint_verdict import Kind
from exact_titan.runs.run_folder import MODEL_FOLDER, stored_names
from exact_titan.runs.run_record import FILE_NAME as RUN_RECORD
from exact_titan.runs.run_record import Resume, read_record
from exact_titan.titan.run_config import RunConfig


def find_resume(config: RunConfig) -> Resume | None:
    """Return the checkpoint that the start continues, and None for a new run.

    Raises:
        InputError: if ``checkpoint.load_step`` names no complete checkpoint, if the folder has checkpoints and none is
            complete, if a later checkpoint cannot be read, or if the last checkpoint holds too little for a resume. The
            message then names the option that saved it so.
    """
    options = config.checkpoint
    if not options.enable or options.create_seed_checkpoint:
        return None
    folder = Path(config.dump_folder) / options.folder
    found = find_checkpoints(folder)
    if options.load_step != -1:
        step = options.load_step
        _check_step(found, folder, step)
    elif options.start_over and not found.complete and not found.of_kind(Kind.UNREADABLE):
        return None
    else:
        last = found.last(
            way_out="copy these checkpoints again, or set --checkpoint.start_over: the run then keeps them under other "
            "names and starts at step 1",
        )
        if last is None:
            return None
        step = last
    complete = found.complete
    if step:  # torchtitan loads only the weights of step 0, a seed checkpoint
        _check_whole(complete[step], config, earlier=[one for one in complete if one < step])
    if config.training.steps < step:
        raise InputError(
            f"training.steps is {config.training.steps}, but {complete[step]} has {step} steps: set training.steps to "
            f"{step} or more, or start from an earlier checkpoint with --checkpoint.load_step"
        )
    record = read_record(complete[step])
    if record is not None:
        record.check_resumable(complete[step] / RUN_RECORD)
    return Resume(complete[step], step, record)


def is_finished(config: RunConfig) -> bool:
    """Whether all steps are done and the last validation has finished, so that the start has nothing to train."""
    resume = config._resume
    if resume is None or resume.step < config.training.steps or config.checkpoint.load_only:
        return False
    validator = config.validator
    due = validator.enable and resume.step % validator.freq == 0
    return not due or (resume.checkpoint / "validated").exists()


def _check_step(found: Checkpoints, folder: Path, step: int) -> None:
    """Refuse a ``checkpoint.load_step`` without a complete checkpoint."""
    if step in found.complete:
        return
    checkpoint = folder / f"step-{step}"
    verdict = found.of_folder(checkpoint)
    if verdict is None:
        steps = ", ".join(map(str, found.complete)) or "none"
        raise InputError(
            f"checkpoint.load_step is {step}, but there is no folder {checkpoint}: the complete checkpoints are of "
            f"the steps {steps}"
        )
    if verdict.kind == Kind.UNREADABLE:
        raise verdict.error()
    raise InputError(f"checkpoint.load_step is {step}, but {verdict.line(skipped=False)}")


def _check_whole(checkpoint: Path, config: RunConfig, *, earlier: list[int]) -> None:
    """Refuse a checkpoint that lacks a part of the state."""
    resume_earlier = f"resume from step {max(earlier)} with --checkpoint.load_step {max(earlier)}" if earlier else ""
    if not (checkpoint / DCP_METADATA).is_file():
        new_run = (
            f"copy the files of {Path(config.dump_folder) / MODEL_FOLDER} to it, and name it with --model in another "
            f"dump_folder"
        )
        raise InputError(
            f"{checkpoint} holds Hugging Face weights without the optimizer, because checkpoint.last_save_in_hf was "
            f"on: a run cannot resume from it: {resume_earlier or new_run}"
        )
    needed = {"optimizer", "lr_scheduler", "dataloader", "train_state"} - set(config.checkpoint.exclude_from_loading)
    missing = needed - {name.split(".")[0] for name in stored_names(checkpoint)}
    if missing:
        new_run = f"start a new run from it with --start_from {config.dump_folder} in another dump_folder"
        raise InputError(
            f"{checkpoint} holds the weights without {', '.join(sorted(missing))}, because "
            f"checkpoint.last_save_model_only was on: a run cannot resume from it: {resume_earlier or new_run}"
        )
