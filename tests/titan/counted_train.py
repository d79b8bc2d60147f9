"""``exact_titan.train`` that counts how often each rank completes the config, reads manifests and checks shards.

    tests.titan.counted_train FOLDER [options of exact_titan.train]

Each rank writes ``RANK.json`` into FOLDER: the number of calls by name, and by file for ``manifest`` and ``shard``.
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

from exact_titan import train
from exact_titan.titan import cpu, torch_versions

torch_versions.install()
cpu.install()

from exact_titan.dataset import dataset  # noqa: E402
from exact_titan.dataset.manifest import Manifest  # noqa: E402
from exact_titan.titan import preflight, trainer  # noqa: E402


def main(folder: Path, argv: list[str]) -> None:
    calls: dict[str, Counter[str]] = {"complete": Counter(), "manifest": Counter(), "shard": Counter()}
    complete, check_size, read = preflight.complete, dataset.check_size, Manifest.read

    def counted_complete(config):
        calls["complete"]["calls"] += 1
        return complete(config)

    def counted_check_size(file, size):
        calls["shard"][str(file)] += 1
        return check_size(file, size)

    def counted_read(folder):
        calls["manifest"][str(folder)] += 1
        return read(folder)

    preflight.complete = trainer.complete = counted_complete
    dataset.check_size = counted_check_size
    Manifest.read = staticmethod(counted_read)
    try:
        train.main(argv)
    finally:
        (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(calls))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
