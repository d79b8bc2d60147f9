"""The program of :func:`tests.packing.conftest.packing`: pack with the arguments of a JSON object."""

import json
import sys
from pathlib import Path

from exact_titan.packing import Execution, executors, pack
from exact_titan.slurm_options import SlurmOptions

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    executors.PROCESS_BYTES = 1  # small files also get separate processes
    slurm = SlurmOptions(**given.pop("slurm", {}))
    execution = Execution(slurm=slurm, **given.pop("execution"))
    manifest = pack(
        given.pop("sources"),
        tokenizer=Path("tokenizer.json"),
        out=Path(given.pop("out")),
        execution=execution,
        **given,
    )
    print(manifest.fingerprint)
