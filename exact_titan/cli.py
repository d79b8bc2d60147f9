"""The command line ``exact-titan``. Each command imports what it needs itself, so that ``--help`` is quick."""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg

from exact_titan.errors import InputError
from exact_titan.slurm_options import SlurmOptions

if TYPE_CHECKING:
    from exact_titan.dataset.manifest import Manifest


def pack(
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCES…", help_behavior_hint="")],
    *,
    tokenizer: Path,
    out: Path,
    seq_len: int = 16384,
    val_fraction: float = 0.0,
    policy: Literal["concat", "best_fit"] = "concat",
    text_key: str = "text",
    eos_token: Annotated[str | None, arg(metavar="TOKEN", help_behavior_hint="(default: found there)")] = None,
    mirror: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: from the hub)")] = None,
    executor: Literal["local", "slurm", "ray"] = "local",
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None,
    tasks: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one for each part)")] = None,
    slurm: SlurmOptions = SlurmOptions(),  # noqa: B008
) -> None:
    """Pack documents into windows for training.

    What is finished is kept beside --out: after an interruption the same command goes on from there. The result does
    not depend on the executor, the workers or the tasks.

    Example: exact-titan pack books.jsonl.gz more/ --tokenizer Llama-3.1-8B --seq-len 16384 --out packed/books-16k

    Args:
        sources: Files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt with one document a file), folders of these, URLs
            of either (s3://, gs://, hf://datasets/), token files of Megatron-LM (.bin with its .idx) and datatrove
            (.ds), or one corpus TOML.
        tokenizer: Hugging Face tokenizer: a folder, or its tokenizer.json. Of token files, the one they were made with.
        out: New folder for the packed dataset.
        seq_len: Window length in tokens, training.seq_len of the runs.
        val_fraction: Share of the documents to keep for validation, from 0 to below 1.
        policy: How documents are laid into windows: concat, end to end, cut at window borders; best_fit, none cut
            that fits a window, longer ones into full windows and a rest, short windows padded.
        text_key: Key or column of the text in .jsonl and .parquet files.
        eos_token: Token of the tokenizer that ends every document; without it the end of text of base models.
        mirror: Folder with copies of the hub's datasets: hf://datasets/OWNER/NAME/… is read from FOLDER/OWNER/NAME/….
        executor: Who packs: this machine, or through datatrove Slurm (started on a login node) or Ray.
        workers: Cores of this machine to use; with slurm and ray, tasks at a time.
        tasks: Tasks that the parts of the corpus, of 512 MiB or one larger file each, are dealt to.
        slurm: Of the tasks with slurm, and their cores and memory with ray.
    """
    from exact_titan.packing import Corpus, Execution
    from exact_titan.packing import pack as pack_documents

    begin = _begin_packing()
    corpus = Corpus.of(sources).mirrored(mirror)
    manifest = pack_documents(
        corpus,
        tokenizer=tokenizer,
        seq_len=seq_len,
        out=out,
        val_fraction=val_fraction,
        policy=policy,
        text_key=text_key,
        eos_token=eos_token,
        execution=Execution(executor, workers, tasks, slurm),
    )
    tokens = sum(source.tokens for source in manifest.sources)
    _show_packed(manifest, out, time.monotonic() - begin, tokens, by_source=corpus.is_mix)


def append(
    folder: Annotated[Positional[Path], arg(metavar="DATASET")],
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCES…", help_behavior_hint="")],
    *,
    text_key: str = "text",
    mirror: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: from the hub)")] = None,
    executor: Literal["local", "slurm", "ray"] = "local",
    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None,
    tasks: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one for each part)")] = None,
    slurm: SlurmOptions = SlurmOptions(),  # noqa: B008
) -> None:
    """Add documents to a packed dataset, packed as it was. Its windows stay, and its fingerprint becomes another.

    Example: exact-titan append packed/books-16k new-books.jsonl.gz

    Args:
        folder: The packed dataset.
        sources: As of pack.
        text_key: Key or column of the text in .jsonl and .parquet files.
        mirror: Folder with copies of the hub's datasets: hf://datasets/OWNER/NAME/… is read from FOLDER/OWNER/NAME/….
        executor: Who packs: this machine, or through datatrove Slurm (started on a login node) or Ray.
        workers: Cores of this machine to use; with slurm and ray, tasks at a time.
        tasks: Tasks that the parts of what is added, of 512 MiB or one larger file each, are dealt to.
        slurm: Of the tasks with slurm, and their cores and memory with ray.
    """
    from exact_titan.dataset.manifest import Manifest
    from exact_titan.packing import Corpus, Execution
    from exact_titan.packing import append as append_documents

    begin = _begin_packing()
    before = sum(source.tokens for source in Manifest.read(folder).sources)
    manifest = append_documents(
        folder,
        Corpus.of(sources).mirrored(mirror),
        text_key=text_key,
        execution=Execution(executor, workers, tasks, slurm),
    )
    tokens = sum(source.tokens for source in manifest.sources) - before
    _show_packed(manifest, folder, time.monotonic() - begin, tokens, by_source=True)


def _begin_packing() -> float:
    # A batch system ends a job with SIGTERM: clean up then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    return time.monotonic()


def _show_packed(manifest: "Manifest", folder: Path, seconds: float, tokens: int, *, by_source: bool) -> None:
    """What a dataset holds, and how fast its last ``tokens`` were packed."""
    from exact_titan.exposure import default_threshold
    from exact_titan.reports.exposure import ExposureReport

    total = sum(source.tokens for source in manifest.sources)
    print(f"documents    {sum(source.documents for source in manifest.sources):,}")
    reasons = dict.fromkeys(reason for source in manifest.sources for reason in source.dropped)
    for reason in reasons:
        print(f"  dropped    {sum(source.dropped.get(reason, 0) for source in manifest.sources):,} ({reason})")
    print(f"tokens       {total:,}")
    if by_source:
        for source in manifest.sources:
            share = 100 * source.tokens / max(1, total)
            print(f"  {share:6.2f} %   {source.name}: {source.tokens:,} tokens, {source.documents:,} documents")
    print(f"end of text  {manifest.tokenizer.eos_token} ({manifest.tokenizer.eos_id})")
    for split, record in manifest.splits.items():
        padding = 100 * record.padding / (record.windows * manifest.window)
        windows = f"{record.windows:,} windows of {manifest.window}, {record.documents:,} documents"
        print(f"{split:<12} {windows}, {padding:.2f} % padding")
    report = ExposureReport.of(manifest.splits["train"], manifest.window, default_threshold(manifest.window))
    print(
        f"tail share   {100 * report.tail_masses[0]:.1f} % of the targets have a context of {report.tail_start} or more"
    )
    print(f"folder       {folder}")
    print(f"fingerprint  {manifest.fingerprint[:12]}")
    print(f"time         {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


def inspect(
    folder: Positional[Path],
    *,
    split: str = "train",
    compare: Annotated[bool, FlagCreatePairsOff] = False,
    png: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none is drawn)")] = None,
    threshold: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: a quarter of the window)")] = None,
) -> None:
    """Show how much left context the targets of a packed dataset have, and what EXACT makes of it.

    Example: exact-titan inspect packed/books-16k --png exposure.png

    Args:
        folder: The packed dataset.
        split: train or val.
        compare: Show what each packing policy makes of the same documents, too.
        png: Draw the histogram into this file, too.
        threshold: First context length of the tail, in tokens.
    """
    from exact_titan.dataset.dataset import split_record
    from exact_titan.dataset.manifest import Manifest
    from exact_titan.exposure import default_threshold
    from exact_titan.reports.exposure import ExposureReport
    from exact_titan.reports.policies import measure_policies, policy_table

    manifest = Manifest.read(folder)
    record = split_record(manifest, split, folder)
    start = default_threshold(manifest.window) if threshold is None else threshold
    report = ExposureReport.of(record, manifest.window, start)
    windows = f"{record.windows:,} windows of {manifest.window}, {record.documents:,} documents"
    title = f"{folder.resolve().name}, {split}: {windows}"
    policies = measure_policies(folder, manifest, split) if compare else []
    if png is not None:
        report.plot(png, title)
    print(f"{title}, fingerprint {manifest.fingerprint[:12]}")
    print(report.table())
    if policies:
        print(f"\npolicies on the same documents; this dataset is packed with {manifest.policy}")
        print(policy_table(policies, start))


def window(
    folder: Positional[Path], number: Annotated[Positional[int], arg(metavar="N")], *, split: str = "train"
) -> None:
    """Show the documents in one window of a packed dataset as text, with their lengths and where they are cut.

    Example: exact-titan window packed/books-16k 17 | less

    Args:
        folder: The packed dataset.
        number: The window, counted from 0 as it stands in the dataset.
        split: train or val.
    """
    from exact_titan.reports.window import window_report

    print(window_report(folder, number, split))


def verify(folder: Positional[Path]) -> None:
    """Check a packed dataset to the last byte: digests, segments, counts.

    Example: exact-titan verify packed/books-16k

    Args:
        folder: The packed dataset.
    """
    from exact_titan.dataset.verify import verify as verify_dataset

    for line in verify_dataset(folder):
        print(f"ok  {line}", flush=True)
    print(f"{folder} is whole")


def compare(
    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="RUNS…", help_behavior_hint="")],
    *,
    png: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: none is drawn)")] = None,
    threshold: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: a quarter of the window)")] = None,
) -> None:
    """Compare runs by the plain cross-entropy of their last validation, per bucket of effective context.

    Example: exact-titan compare outputs/standard outputs/exact --png compare.png

    Args:
        runs: The runs' dump folders; differences are from the first.
        png: Draw the table into this file, too.
        threshold: First context length of the tail that the picture shades, in tokens.
    """
    from exact_titan.reports import runs as study

    validations = study.read_validations(runs)
    if png is not None:
        study.figure(validations, png, threshold=threshold)
    print(study.table(validations))


def export(
    run: Positional[Path],
    *,
    out: Path,
    step: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: the last)")] = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
) -> None:
    """Write a run's weights as a Hugging Face folder, which transformers and vLLM load.

    Example: exact-titan export outputs/books --out books-135M

    Args:
        run: The run's dump folder, or one checkpoint in it.
        out: New folder for config.json, the tokenizer and the safetensors.
        step: Take the checkpoint of this step.
        dtype: Of all weights.
    """
    from exact_titan.runs.export import export as export_run

    files = export_run(run, out, step=step, dtype=dtype)
    print(f"{out}: {len(files)} file{'s' if len(files) > 1 else ''}, {sum(f.stat().st_size for f in files):,} bytes")


def plan(
    options: Annotated[Positional[tuple[str, ...]], arg(metavar="--SECTION.OPTION VALUE…", help_behavior_hint="")] = (),
    *,
    config: str,
    nproc: int,
    memory: Annotated[str | None, arg(metavar="SIZE", help_behavior_hint="(default: nothing is compared)")] = None,
    mfu: float = 0.35,
    peak_tflops: float = 989.0,
) -> int:
    """Show what a training run will need: memory of a GPU, FLOPs and hours. Needs no GPU and no dataset.

    The exit code is 1 if it does not fit.

    Example: exact-titan plan --config train_configs/run.toml --nproc 8 --memory 80GiB --training.seq_len 8192

    Args:
        options: Options of the run, as of exact_titan.train, which win over the config's.
        config: Recipe, or TOML file of a run.
        nproc: GPUs in all, on all nodes.
        memory: Memory of one GPU, such as 80GiB.
        mfu: Share of the peak that the run is taken to reach (torchtitan on H100, Llama 3.1 8B: 0.33 to 0.39).
        peak_tflops: Dense bfloat16 TFLOP/s of one GPU (H100 SXM and H200: 989, A100: 312).
    """
    from exact_titan.config import load_config
    from exact_titan.planning import report
    from exact_titan.planning.run import plan_run

    if not 0 < mfu <= 1:
        raise InputError(f"--mfu is {mfu}: it is a share, more than 0 and at most 1")
    if peak_tflops <= 0:
        raise InputError(f"--peak-tflops is {peak_tflops}: it must be more than 0")
    available = None if memory is None else report.parse_memory(memory)
    planned = plan_run(load_config(["--config", config, *options]), nproc=nproc)
    print(report.table(planned, memory=available, peak_flops=peak_tflops * 1e12, mfu=mfu))
    if available is None:
        return 0
    verdict = report.shortfall(planned, available)
    print(f"\n{verdict or 'fits'}")
    return 1 if verdict else 0


COMMANDS: dict[str, Callable] = {
    "pack": pack,
    "append": append,
    "inspect": inspect,
    "window": window,
    "verify": verify,
    "compare": compare,
    "export": export,
    "plan": plan,
}


_PLAN_OPTIONS = ("--config", "--nproc", "--memory", "--mfu", "--peak-tflops")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 2 for wrong input, 130 after Ctrl-C."""
    try:
        code = tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="exact-titan",
            description="Long-context continued pretraining with EXACT: the tools around the training runs.",
            args=_run_options_last(sys.argv[1:] if arguments is None else arguments),
        )
    except InputError as error:
        print(f"exact-titan: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("exact-titan: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # head and less close it when they have enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    return code or 0


def _run_options_last(arguments: Sequence[str]) -> list[str]:
    """``plan``'s arguments with those that are not its own behind ``--``, where the parser leaves them as they are."""
    if not arguments or arguments[0] != "plan":
        return list(arguments)
    own, others = ["plan"], []
    rest = iter(arguments[1:])
    for argument in rest:
        name, _, value = argument.partition("=")
        if name in ("-h", "--help"):
            own.append(argument)
        elif name.replace("_", "-") in _PLAN_OPTIONS:
            own += [argument] if value else [argument, *itertools.islice(rest, 1)]
        elif argument != "--":
            others.append(argument)
    return [*own, "--", *others]


if __name__ == "__main__":
    sys.exit(main())
