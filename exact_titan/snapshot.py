"""``python -m exact_titan.snapshot --name NAME --ranks N -- --config NAME_OR_TOML [--section.option value …]``.

Checks a run as its start would, and keeps what it is started with in ``<dump_folder>/slurm/NAME``: for batch systems,
where a start is unattended and may come days after the next change of the code.
"""

import argparse
import contextlib
import json
import os
import shlex
import shutil
import sys
import tarfile
from importlib.metadata import distributions
from pathlib import Path
from typing import TYPE_CHECKING

from exact_titan.errors import InputError

if TYPE_CHECKING:
    from exact_titan.titan.run_config import RunConfig

FOLDER = "slurm"


def main(argv: list[str] | None = None) -> int:
    """Print the run's folder; the exit code is 2, with one line, for a run that cannot start."""
    parser = argparse.ArgumentParser(prog="exact_titan.snapshot")
    parser.add_argument("--name", required=True, help="folder for the snapshot, of this start")
    parser.add_argument("--ranks", required=True, type=int, help="processes of the run")
    parser.add_argument("options", nargs="+", help="options of exact_titan.train")
    args = parser.parse_args(argv)

    from exact_titan.titan import cpu, torch_versions

    torch_versions.install()
    cpu.install()
    from exact_titan.config import load_config
    from exact_titan.titan.preflight import complete

    os.environ["WORLD_SIZE"] = str(args.ranks)
    try:
        # Whatever says something meanwhile: the output is the folder's name alone.
        with contextlib.redirect_stdout(sys.stderr):
            config = complete(load_config(args.options))
            write_snapshot(config, args.options, Path(config.dump_folder) / FOLDER / args.name)
    except InputError as error:
        print(f"exact_titan.train: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    print(config.dump_folder)
    return 0


def write_snapshot(config: "RunConfig", options: list[str], folder: Path) -> None:
    """Write what a run is started with.

    ``command.txt`` has the options, ``config.json`` all that came of them, ``config.toml`` is a copy of the TOML if
    there is one, ``code.tar.gz`` is this package, and ``packages.txt`` names the others with their versions.

    Args:
        config: the completed config.
        options: those it was made from.
        folder: the new folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "command.txt").write_text(f"python -m exact_titan.train {shlex.join(options)}\n", encoding="utf-8")
        (folder / "config.json").write_text(
            json.dumps(config.to_dict(), indent=1, default=str) + "\n", encoding="utf-8"
        )
        for option in options:
            if option.endswith(".toml") and Path(option).is_file():
                shutil.copyfile(option, folder / "config.toml")
        packages = {f"{one.metadata['Name']}=={one.version}\n" for one in distributions()}
        (folder / "packages.txt").write_text("".join(sorted(packages, key=str.lower)), encoding="utf-8")
        with tarfile.open(folder / "code.tar.gz", "w:gz") as archive:
            package = Path(__file__).parent
            for file in sorted(package.rglob("*.py")):
                archive.add(file, Path(package.name) / file.relative_to(package))
    except OSError as error:
        raise InputError(f"dump_folder {config.dump_folder} cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
