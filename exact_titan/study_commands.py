"""The commands of ``exact-titan study``."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from exact_titan.launch import configs
from exact_titan.launch.command import COMMAND, check_environment


def run(study: Annotated[Positional[str], arg(metavar="STUDY")], *, out: Path) -> int:
    """Train the arms of a study, on the same data from the same start. The same command resumes the study.

    The exit code is 75 after Ctrl-C or SIGTERM: the running runs have saved, and the same command resumes them.

    Example: exact-titan study run studies/smollm2.toml --out outputs/smollm2-study

    Args:
        study: STUDY.toml, or the name of a study that the package ships: smollm2 or paper-llama-3.1-8b.
        out: Folder of the study. A folder of another study is refused.
    """
    from exact_titan.runs.exit_codes import ExitCode
    from exact_titan.study import session
    from exact_titan.study.plan import plan, representatives
    from exact_titan.study.spec import read_study
    from exact_titan.study_machine import Machine, run_argv

    check_environment(os.environ)
    file = configs.find_study(study)
    read, where = read_study(file), str(file)
    os.environ[COMMAND] = shlex.join(["exact-titan", "study", "run", study, "--out", str(out)])
    for one in representatives(plan(read, out, where=where)).values():
        run_argv(one, where=where)
    machine = Machine(read, where)
    code = session.run(read, out, where=where, complete=machine.complete, machine=machine.starter)
    if code == ExitCode.SAVED:
        print(f"stopped; the same command resumes the study: {os.environ[COMMAND]}", flush=True)
    return code


def facts(
    sources: Annotated[Positional[tuple[str, ...]], arg(metavar="SOURCES…", help_behavior_hint="")],
    *,
    out: Path,
    short_len: int = 128,
    long_len: int = 512,
    tokens: int = 4_000_000,
    val_tokens: int = 262_144,
    seed: int = 0,
    text_key: str = "text",
) -> None:
    """Make the corpus of the miniature study: your text with planted facts, packed in short and in long windows.

    A fact is a key and its value. A document states a fact once and asks for the fact again later. The command writes
    the datasets FOLDER/short and FOLDER/long. The validation documents come from a tenth of the texts, which no
    training document uses.

    Example: exact-titan study facts book_chapters.jsonl.gz --out packed/facts

    Args:
        sources: Files (.jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt with one document a file), folders of such files,
            or URLs. The command reads the first 64 Mi characters.
        out: New folder for the two datasets.
        short_len: Window length of FOLDER/short in tokens. The median document has 2/5 of the window.
        long_len: Window length of FOLDER/long in tokens, likewise.
        tokens: Tokens of the training documents of each dataset.
        val_tokens: Tokens of the validation documents of each dataset.
        seed: Seed of the held-out texts, of the documents and of the facts.
        text_key: Key or column of the text in .jsonl and .parquet files.
    """
    from exact_titan.study.fact_corpus import plant_facts
    from exact_titan.study.facts import fact_distances

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    manifests = plant_facts(
        sources,
        out=out,
        short_len=short_len,
        long_len=long_len,
        tokens=tokens,
        val_tokens=val_tokens,
        seed=seed,
        text_key=text_key,
    )
    for name, manifest in manifests.items():
        for split, record in manifest.splits.items():
            distances = fact_distances(out / name, split)
            asked, far = (int((distances >= least).sum()) for least in (1, manifest.window // 4))
            print(
                f"{out / name}, {split}: {record.windows:,} windows of {manifest.window}, {record.documents:,} "
                f"documents, {asked:,} asked facts, {far:,} of them {manifest.window // 4} tokens or more back"
            )


def report(folder: Annotated[Positional[Path], arg(metavar="FOLDER")]) -> None:
    """Report a study: is an arm better than the baseline, with intervals over pairs of runs, tables and figures.

    The command prints the table of the primary outcome. FOLDER/report gets report.html, report.md, the pictures, and a
    CSV of every number. The report of a study that still trains has the complete pairs.

    Example: exact-titan study report outputs/smollm2-study

    Args:
        folder: Folder of the study, --out of `exact-titan study run`.
    """
    from exact_titan.reports.study import write_report

    print(write_report(folder))


COMMANDS: dict[str, Callable[..., int | None]] = {"run": run, "report": report, "facts": facts}
