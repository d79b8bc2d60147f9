"""Runs in the background of this process: ``exact-titan train`` with its output in a file."""

import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

from exact_titan.launch.warm import end_with_parent
from exact_titan.system.folder_files import without_links


def start(argv: list[str], log: Path, environment: dict[str, str], *, nproc: int) -> "subprocess.Popen[bytes]":
    """Start ``exact-titan train --nproc NPROC ARGV…``.

    The run has its own session, so that a Ctrl-C does not reach it. The run saves and ends when this process has ended.

    Args:
        argv: arguments of the run, ``--config CONFIG`` and options.
        log: file for the output. The run appends to the file.
        environment: further environment variables of the run.
        nproc: number of processes.
    """
    command = [sys.executable, "-m", "exact_titan.cli", "train", "--nproc", str(nproc), *argv]
    with open(log, "ab", opener=without_links) as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,
            # The run keeps the open file of the study's lock.
            close_fds=False,
            preexec_fn=functools.partial(end_with_parent, signal.SIGTERM),
        )
