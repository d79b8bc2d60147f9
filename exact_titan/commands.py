"""The commands of ``exact-titan``. Each command imports its modules itself, because ``--help`` must be fast."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from exact_titan.errors import InputError
from exact_titan.launch import arguments, configs
from exact_titan.slurm_options import SlurmOptions
from exact_titan.system.terminal import one_line

if TYPE_CHECKING:
    from exact_titan.dataset import Manifest
    from exact_titan.packing import Execution as PackingExecution


@dataclass(frozen=True)
class ExecutionOptions:
    """Options of ``pack`` and ``append`` for the packing tasks."""

    executor: Literal["local", "slurm", "ray"] = "local"
    """Where the tasks run: on this machine, or through datatrove on Slurm (start from a login node) or on Ray."""

    workers: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: all)")] = None
    """local: cores of this machine to use. slurm and ray: tasks that run at one time."""

    tasks: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: one for each part)")] = None
    """Number of tasks for the parts of the corpus. A part is up to 512 MiB of files, or one larger file."""

    slurm: SlurmOptions = field(default_factory=SlurmOptions)
    """Options of the Slurm jobs. With ray, the cores and the memory of a task."""


Sources = Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCES…", help_behavior_hint="")]
Datasets = Annotated[Positional[str], arg(metavar="DATASET[=WEIGHT],…")]
Mirror = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="(default: from the hub)")]
Execution = Annotated[ExecutionOptions, arg(name="")]


def pack(
    sources: Sources,
    *,
    tokenizer: Path,
    out: Path,
    seq_len: int = 16384,
    val_fraction: float = 0.0,
    policy: Annotated[
        Literal["concat", "best_fit"] | None,
        arg(metavar="{concat,best_fit}", help_behavior_hint="(default: concat, with --sft best_fit)"),
    ] = None,
    sft: Annotated[bool, FlagCreatePairsOff] = False,
    template: Annotated[
        Literal["dolly", "chat"] | None, arg(metavar="{dolly,chat}", help_behavior_hint="(default: dolly)")
    ] = None,
    text_key: str = "text",
    eos_token: Annotated[str | None, arg(metavar="TOKEN", help_behavior_hint="(default: from the tokenizer)")] = None,
    special_tokens: Literal["text", "ids"] = "text",
    split_at_eos: Annotated[bool, FlagCreatePairsOff] = False,
    mirror: Mirror = None,
    execution: Execution = ExecutionOptions(),
) -> None:
    """Pack documents into windows for training.

    Finished parts are kept next to --out. After an interruption the same command resumes with the unfinished parts. The
    result does not depend on the executor, the workers or the tasks.

    Example: exact-titan pack books.jsonl.gz more/ --tokenizer Llama-3.1-8B --seq-len 16384 --out packed/books-16k

    Example: exact-titan pack --sft instructions.jsonl --tokenizer Llama-3.1-8B --seq-len 16384 --out packed/sft-16k

    Args:
        sources: Files (.jsonl, .json, .parquet, .arrow, .csv, .txt with one document a file; text also with .gz, .zst,
            .bz2, .xz), folders of such files, URLs of files or folders (s3://, gs://, hf://datasets/), token files of
            Megatron-LM (.bin with its .idx) and
            datatrove (.ds), or one corpus TOML. `exact-titan configs` lists corpora that have a name.
        tokenizer: Hugging Face tokenizer: a folder, or its tokenizer.json. For token files: the tokenizer that made
            them.
        out: New folder for the packed dataset.
        seq_len: Window length in tokens, training.seq_len of the runs.
        val_fraction: Share of the documents for validation, from 0 to below 1.
        policy: Placement of documents in windows. concat: end to end, cut at window borders. best_fit: a document
            that fits a window is not cut; a longer document fills full windows and a rest; short windows are padded.
        sft: The sources are instructions: rows with instruction, context and response as in Dolly-15K, or with messages
            (role and content). Only the responses have a loss. Samples longer than a window are left out.
        template: With --sft. dolly: Dolly's headings. chat: the chat template of the tokenizer.
        text_key: Key or column of the text, for all kinds except .txt.
        eos_token: Token of the tokenizer that ends every document. By default the end-of-text token of base models.
        special_tokens: Special tokens that a document spells, such as <|end_of_text|>, stay text or become their ids.
        split_at_eos: A document of a token file also ends at every end-of-text id inside it, for packed samples.
        mirror: Folder with copies of the hub's datasets: hf://datasets/OWNER/NAME/… is read from FOLDER/OWNER/NAME/….
        execution: See ExecutionOptions.
    """
    from exact_titan import packing
    from exact_titan.packing.interrupt import ending_at_once

    if template and not sft:
        raise InputError("--template is an option of --sft: add --sft to pack instructions")
    if sft and text_key != "text":
        raise InputError("--text-key is not an option of --sft: the fields of instructions have fixed names")
    begin = time.monotonic()
    with ending_at_once():
        paths = configs.with_shipped_corpora(sources)
        for source, path in zip(sources, paths, strict=True):
            if path != source:
                print(f"corpus       {source}: {path}")
        corpus = packing.Corpus.of(paths).mirrored(mirror)
        manifest = packing.pack(
            corpus,
            tokenizer=tokenizer,
            seq_len=seq_len,
            out=out,
            val_fraction=val_fraction,
            policy=policy,
            template=template or "dolly" if sft else None,
            text_key=text_key,
            eos_token=eos_token,
            special_tokens=special_tokens,
            split_at_eos=split_at_eos,
            execution=_execution(execution),
        )
        tokens = sum(source.tokens for source in manifest.sources)
        _show_packed(manifest, out, time.monotonic() - begin, tokens, by_source=corpus.is_mix)


def append(
    folder: Annotated[Positional[Path], arg(metavar="DATASET")],
    sources: Sources,
    *,
    text_key: str = "text",
    special_tokens: Literal["text", "ids"] = "text",
    split_at_eos: Annotated[bool, FlagCreatePairsOff] = False,
    mirror: Mirror = None,
    execution: Execution = ExecutionOptions(),
) -> None:
    """Add documents to a packed dataset, with the dataset's own tokenizer, window and policy.

    The windows of the dataset stay. The dataset gets a new fingerprint. A dataset of instructions (pack --sft) takes
    instructions.

    Example: exact-titan append packed/books-16k new-books.jsonl.gz

    Args:
        folder: The packed dataset.
        sources: The same kinds as for pack.
        text_key: Key or column of the text, for all kinds except .txt.
        special_tokens: As for pack.
        split_at_eos: As for pack.
        mirror: Folder with copies of the hub's datasets: hf://datasets/OWNER/NAME/… is read from FOLDER/OWNER/NAME/….
        execution: See ExecutionOptions.
    """
    from exact_titan import packing
    from exact_titan.dataset import Manifest
    from exact_titan.packing.interrupt import ending_at_once

    begin = time.monotonic()
    with ending_at_once():
        tokens_before = sum(source.tokens for source in Manifest.read(folder).sources)
        manifest = packing.append(
            folder,
            packing.Corpus.of(sources).mirrored(mirror),
            text_key=text_key,
            special_tokens=special_tokens,
            split_at_eos=split_at_eos,
            execution=_execution(execution),
        )
        tokens = sum(source.tokens for source in manifest.sources) - tokens_before
        _show_packed(manifest, folder, time.monotonic() - begin, tokens, by_source=True)


def _execution(options: ExecutionOptions) -> "PackingExecution":
    from exact_titan.packing import Execution

    return Execution(options.executor, options.workers, options.tasks, options.slurm)


def _show_packed(manifest: "Manifest", folder: Path, seconds: float, tokens: int, *, by_source: bool) -> None:
    """Print the contents of a dataset, and the packing speed for ``tokens`` tokens in ``seconds``."""
    from exact_titan.exposure import default_threshold
    from exact_titan.reports.exposure import ExposureReport

    total = sum(source.tokens for source in manifest.sources)
    for reason in dict.fromkeys(reason for source in manifest.sources for reason in source.passed_over):
        files = sum(source.passed_over.get(reason, 0) for source in manifest.sources)
        _print_line(f"passed over  {files:,} file{'s' if files > 1 else ''} ({reason})")
    _print_line(f"documents    {sum(source.documents for source in manifest.sources):,}")
    reasons = dict.fromkeys(reason for source in manifest.sources for reason in source.dropped)
    for reason in reasons:
        _print_line(f"  dropped    {sum(source.dropped.get(reason, 0) for source in manifest.sources):,} ({reason})")
    remarks = dict.fromkeys(remark for source in manifest.sources for remark in source.remarks)
    for remark in remarks:
        _print_line(f"  with       {sum(source.remarks.get(remark, 0) for source in manifest.sources):,} ({remark})")
    if manifest.sft is not None:
        for name in manifest.sft.too_long:
            _print_line(f"  too long   {name}")
        _print_line(f"rows         {manifest.sft.rows:,}, template {manifest.sft.template}")
    _print_line(f"tokens       {total:,}")
    if by_source:
        for source in manifest.sources:
            share = 100 * source.tokens / max(1, total)
            _print_line(f"  {share:6.2f} %   {source.name}: {source.tokens:,} tokens, {source.documents:,} documents")
    _print_line(f"end of text  {manifest.tokenizer.eos_token} ({manifest.tokenizer.eos_id})")
    for split, record in manifest.splits.items():
        padding = 100 * record.padding / (record.windows * manifest.window)
        windows = f"{record.windows:,} windows of {manifest.window}, {record.documents:,} documents"
        loss = (
            "" if manifest.sft is None else f", {100 * record.targets / record.tokens:.2f} % of the inputs with a loss"
        )
        _print_line(f"{split:<12} {windows}, {padding:.2f} % padding{loss}")
    report = ExposureReport.of(folder, manifest, "train", threshold=default_threshold(manifest.window))
    _print_line(
        f"tail share   {report.tail_percent:.1f} % of the targets have a context of {report.tail_start} or more"
    )
    _print_line(f"folder       {folder}")
    _print_line(f"fingerprint  {manifest.fingerprint[:12]}")
    _print_line(f"time         {seconds:.1f} s, {tokens / seconds:,.0f} tokens/s")


def _print_line(line: str) -> None:
    """Print one line of a table. A name with a line break stays on its line."""
    print(one_line(line), flush=True)


def inspect(
    datasets: Datasets,
    *,
    split: str = "train",
    compare: Annotated[bool, FlagCreatePairsOff] = False,
    png: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="(default: no figure)")] = None,
    threshold: Annotated[int | None, arg(metavar="N", help_behavior_hint="(default: a quarter of the window)")] = None,
    rules: Annotated[str, arg(metavar="A,B,...")] = "standard,exact",
) -> None:
    """Show the left context of the targets of packed datasets, and their loss weights under EXACT and other rules.

    Example: exact-titan inspect packed/books-16k --png exposure.png

    Example: exact-titan inspect packed/web=3,packed/math=1

    Args:
        datasets: The packed dataset, or several datasets with or without weights, as for --dataloader.dataset_path.
        split: train or val.
        compare: Also show the windows that each packing policy would make of the same documents.
        png: Also draw the histogram into this file.
        threshold: First context length of the tail, in tokens.
        rules: The rules to compare, with commas: the names of --loss.rule.
    """
    from exact_titan.exposure import default_threshold
    from exact_titan.reports.exposure import ExposureReport, mixture_table
    from exact_titan.reports.figures import save_png
    from exact_titan.reports.policies import measure_policies, policy_table
    from exact_titan.sampling.mixture import Mixture

    mixture = Mixture(datasets, split)
    start = default_threshold(mixture.window) if threshold is None else threshold
    report = ExposureReport.of_mixture(mixture, threshold=start, rules=rules.split(","))
    names = " + ".join(dataset.folder.resolve().name for dataset in mixture.datasets)
    windows = sum(map(len, mixture.datasets))
    documents = sum(dataset.record.documents for dataset in mixture.datasets)
    title = f"{names}, {split}: {windows:,} windows of {mixture.window}, {documents:,} documents"
    policies = [measure_policies(one.folder, one.manifest, split) for one in mixture.datasets] if compare else []
    if png is not None:
        save_png(report.figure(title), png)
    several = len(mixture.datasets) > 1
    _print_line(title if several else f"{title}, fingerprint {mixture.fingerprint[:12]}")
    if several:
        print(f"{mixture_table(mixture, threshold=report.tail_start)}\n")
    print(report.table())
    for dataset, figures in zip(mixture.datasets, policies, strict=False):
        of = f" of {dataset.folder}" if several else ""
        print(f"\npolicies on the same documents{of}; this dataset is packed with {dataset.manifest.policy}")
        print(policy_table(figures, start))


def window(
    datasets: Datasets,
    number: Annotated[Positional[int], arg(metavar="N")],
    *,
    split: str = "train",
    seed: int = 0,
) -> None:
    """Show the documents of one window of a packed dataset as text, with their lengths and their cuts.

    Example: exact-titan window packed/books-16k 17 | less

    Example: exact-titan window packed/web=3,packed/math=1 0

    Args:
        datasets: The packed dataset, or several datasets with or without weights, as for --dataloader.dataset_path.
        number: Number of the window in the split, from 0. For several datasets: the index of the window in a run on
            these datasets.
        split: train or val.
        seed: dataloader.seed of the run, for several datasets with weights.
    """
    from exact_titan.reports.window import place_report, window_report
    from exact_titan.sampling.dataset_path import parse

    entries = parse(datasets)
    if len(entries) == 1:
        print(window_report(entries[0].folder, number, split))
    else:
        print(place_report(datasets, number, split, seed=seed))


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
    for line in verify_dataset(folder):
        _print_line(f"ok  {line}")
    _print_line(f"{folder} is whole")


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
    "pack": pack,
    "append": append,
    "inspect": inspect,
    "window": window,
    "verify": verify,
    "configs": list_configs,
    "plan": plan,
    "compare": compare,
    "export": export,
}
