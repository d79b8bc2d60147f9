"""The process of test_malformed.py that runs commands on broken input, one command after another.

    tests.malformed_runs CASES.json OUT.json

CASES is a list of cases. A case has ``cwd``, ``program`` (``exact-titan`` or ``exact_titan.train``), ``argv`` and
``seconds``, the time limit. With ``build`` a training run ends after the build, before the first step.

OUT is a list of results, one for each case. A result has the exit ``code`` (None after an exception), the printed
``output``, the ``traceback`` of an exception (or an empty string), and two lists of files under cwd: ``lost`` (removed
or changed files) and ``new``.
"""

import hashlib
import json
import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from exact_titan.titan import cpu, torch_versions

torch_versions.install()
cpu.install()

import torch.distributed as dist  # noqa: E402

from exact_titan import cli, train  # noqa: E402
from exact_titan.titan.trainer import ExactTrainer  # noqa: E402


class Built(BaseException):
    """Ends a training run after the build."""


class TooLong(BaseException):
    """Ends a command after its time limit."""


def listing(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in folder.rglob("*")
    }


def call(case: dict[str, Any]) -> int | None:
    if case["program"] == "exact-titan":
        return cli.main(case["argv"])
    train.main(case["argv"])
    return 0


def run(case: dict[str, Any]) -> dict[str, Any]:
    folder = Path(case["cwd"])
    os.chdir(folder)
    before = listing(folder)
    error, code = "", None
    with tempfile.TemporaryFile("w+b") as printed:
        former = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(printed.fileno(), number)
        signal.alarm(case["seconds"])
        try:
            code = call(case)
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Built:
            code = 0
        except BaseException:  # PyTorch's CheckpointException is not an Exception
            error = traceback.format_exc()
        finally:
            signal.alarm(0)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in zip((1, 2), former, strict=True):
                os.dup2(copy, number)
                os.close(copy)
        if dist.is_initialized():
            dist.destroy_process_group()
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    after = listing(folder)
    lost = sorted(name for name in before if before[name] != after.get(name))
    return {
        "code": code,
        "output": output,
        "traceback": error,
        "lost": lost,
        "new": sorted(after.keys() - before.keys()),
    }


def main(cases_file: str, out_file: str) -> None:
    def ring(*_: object) -> None:
        raise TooLong

    signal.signal(signal.SIGALRM, ring)
    stock_train = ExactTrainer.train
    results = []
    for case in json.loads(Path(cases_file).read_text()):

        def built(self: ExactTrainer) -> None:
            raise Built

        ExactTrainer.train = built if case.get("build") else stock_train  # type: ignore[method-assign]
        results.append(run(case))
    Path(out_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
