"""The commands of ``exact-titan``. Each command imports its modules itself, because ``--help`` must be fast."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from exact_titan import data_commands
from exact_titan.errors import InputError
from exact_titan.launch import arguments, configs
from exact_titan.system.terminal import print_lines


def verify(folder: Positional[Path]) -> None:
    """Check every byte of a packed dataset (digests, segments, counts), or of the checkpoints of a run (digests).

    Example: exact-titan verify packed/books-16k

    Example: exact-titan verify outputs/exact

    Args:
        folder: The packed dataset, the dump folder of a run, or one checkpoint.
    """
    from exact_titan.dataset.verify import verify as verify_dataset
    from exact_titan.runs.run_verification import is_run, verify_run

    if is_run(folder):
        verify_run(folder, print)
        return
    print_lines(f"ok  {line}" for line in verify_dataset(folder))
    print_lines([f"{folder} is whole"])


def compare(
    runs: Annotated[Positional[tuple[str, ...]], arg(metavar="RUNS…", help_behavior_hint="")],
    *,
    png: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: no figure)")] = None,
    threshold: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: of the runs)")] = None,
) -> None:
    """Compare runs by the plain cross-entropy of their last common validation, per bucket of effective context.

    With one run a side, the errors are standard errors over documents. With several runs a side, the errors of the
    differences are 95 % intervals over pairs of runs.

    Example: exact-titan compare outputs/standard outputs/exact --png compare.png

    Example: exact-titan compare standard=outputs/s0,outputs/s1 exact=outputs/e0,outputs/e1

    Args:
        runs: The dump folders of the runs. Differences are from the first run. For several runs of one side that differ
            in the seed: NAME=FOLDER,FOLDER. The first run of each side forms a pair, the second run of each side forms
            a pair, and so on.
        png: Also draw the table into this file.
        threshold: First context length of the tail, in tokens.
    """
    from exact_titan.reports import runs as report
    from exact_titan.reports.figures import save_png

    comparison = report.compare(report.parse_sides(runs), threshold=threshold)
    if png is not None:
        save_png(report.figure(comparison), png)
    print(report.table(comparison))


def export(
    run: Positional[Path],
    *,
    out: Path,
    step: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the last)")] = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    verify: bool = True,
) -> None:
    """Write the weights of a run as a Hugging Face folder for transformers and vLLM.

    Example: exact-titan export outputs/books --out books-135M

    Args:
        run: The dump folder of the run, or one checkpoint in it.
        out: New folder for config.json, the tokenizer and the safetensors.
        step: Step of the checkpoint.
        dtype: Data type of all weights.
        verify: First compare the SHA-256 of every file of the checkpoint with files.json.
    """
    from exact_titan.runs.export import export as export_run

    files = export_run(run, out, step=step, dtype=dtype, verify=verify)
    print(f"{out}: {len(files)} file{'s' if len(files) > 1 else ''}, {sum(f.stat().st_size for f in files):,} bytes")


def plan(
    options: Annotated[Positional[tuple[str, ...]], arg(metavar="--SECTION.OPTION VALUE…", help_behavior_hint="")] = (),
    *,
    config: str,
    nproc: int,
    memory: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: no comparison)")] = None,
    mfu: float = 0.35,
    peak_tflops: float = 989.0,
) -> int:
    """Show the memory per GPU, the FLOPs and the hours of a training run. The command needs no GPU and no dataset.

    The exit code is 1 if the run does not fit.

    Example: exact-titan plan --config Llama-3.1-8B-16k --nproc 8 --memory 80GiB --training.local_batch_size 2

    Args:
        options: Options of the run, as of exact_titan.train. They override the config.
        config: TOML file, recipe, or a name that `exact-titan configs` lists.
        nproc: Number of GPUs over all nodes.
        memory: Memory of one GPU, such as 80GiB.
        mfu: Assumed share of the peak FLOP/s that the run reaches (torchtitan on H100, Llama 3.1 8B: 0.33 to 0.39).
        peak_tflops: Dense bfloat16 TFLOP/s of one GPU (H100 SXM and H200: 989, A100: 312).
    """
    # These checks come before the import of torch.
    given = arguments.read(["--config", config, *options])
    if nproc < 1:
        raise InputError(f"--nproc is {nproc}: it must be 1 or more")
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu is {mfu}: it is a share, more than 0 and at most 1")
    if peak_tflops <= 0:
        raise InputError(f"--peak-tflops is {peak_tflops}: it must be more than 0")

    from exact_titan.config import config_of
    from exact_titan.planning import report
    from exact_titan.planning.run import plan_run

    available = None if memory is None else report.parse_memory(memory)
    planned = plan_run(config_of(given), nproc=nproc)
    print(report.table(planned, memory=available, peak_flops=peak_tflops * 1e12, mfu=mfu))
    if available is None:
        return 0
    verdict = report.shortfall(planned, available)
    print(f"\n{verdict or 'fits'}")
    return 1 if verdict else 0


def list_configs(
    folder: Annotated[Positional[Path], arg(metavar="FOLDER", help_behavior_hint="(default: this folder)")] = Path("."),
    *,
    copy: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="(default: list all)")] = None,
) -> None:
    """List the recipes, configs and corpora that have a name, or copy a config to edit the copy.

    Example: exact-titan configs --copy Llama-3.1-8B-16k my-configs

    Args:
        folder: Folder of the copy.
        copy: Config or corpus to copy. A file that exists is never overwritten.
    """
    print(configs.listing() if copy is None else configs.copy(copy, folder))


COMMANDS: dict[str, Callable] = {
    **data_commands.COMMANDS,
    "verify": verify,
    "configs": list_configs,
    "plan": plan,
    "compare": compare,
    "export": export,
}
