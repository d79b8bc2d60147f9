"""A study on a GPU machine with an older torch and no network: `exact-titan study run` with the stand-ins.

::

    PYTHONPATH=.:SITE python3 -m benchmarks.gpu_study STUDY.toml --out DIR --seconds 450

The arguments are those of ``exact-titan study run``. The script stops the study after ``--seconds``: the running runs
save, and the report then names the missing pairs. Every run is a process of its own (:mod:`benchmarks.old_torch`). The
script prints the end of the log of a run that fails.
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from benchmarks import old_torch

_TRAIN = "from benchmarks import old_torch; old_torch.install(); from exact_titan import train; train.main()"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="time limit of the training")
    args = parser.parse_args()
    old_torch.install()
    from exact_titan.study import session
    from exact_titan.study.spec import read_study
    from exact_titan.study_machine import Machine

    study, where = read_study(args.study), str(args.study)
    machine = Machine(study, where, launch=_launch)
    threading.Thread(target=_stop_after, args=(args.seconds,), daemon=True).start()
    code = session.run(study, args.out, where=where, complete=machine.complete, machine=machine.starter)
    print(f"exit code {code}", flush=True)
    return code


def _launch(argv: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, "-c", _TRAIN, *argv],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            start_new_session=True,  # the study passes signals on
        )


def _stop_after(seconds: float) -> None:
    time.sleep(seconds)
    print(f"{seconds:.0f} s are over: stopping", flush=True)
    os.kill(os.getpid(), 15)


if __name__ == "__main__":
    sys.exit(main())
