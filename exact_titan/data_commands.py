"""The commands of ``exact-titan`` that make and show packed datasets.

Each command imports its modules itself, because ``--help`` must be fast.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from exact_titan.errors import InputError
from exact_titan.launch import configs
from exact_titan.slurm_options import SlurmOptions
from exact_titan.system.terminal import print_lines

if TYPE_CHECKING:
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
    from exact_titan.reports.packed import packed_lines

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
        seconds = time.monotonic() - begin
        print_lines(packed_lines(manifest, out, seconds, tokens, by_source=corpus.is_mix))


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
    from exact_titan.reports.packed import packed_lines

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
        print_lines(packed_lines(manifest, folder, time.monotonic() - begin, tokens, by_source=True))


def _execution(options: ExecutionOptions) -> "PackingExecution":
    from exact_titan.packing import Execution

    return Execution(options.executor, options.workers, options.tasks, options.slurm)


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
    print_lines([title if several else f"{title}, fingerprint {mixture.fingerprint[:12]}"])
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


COMMANDS: dict[str, Callable] = {"pack": pack, "append": append, "inspect": inspect, "window": window}
