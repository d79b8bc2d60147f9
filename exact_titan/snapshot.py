"""``python -m exact_titan.snapshot --name NAME --ranks N -- --config NAME_OR_TOML [--section.option value …]``.

Checks a run as a start of the run does, and saves the inputs of the start in ``<dump_folder>/slurm/NAME``. The snapshot
is for batch systems. In a batch system a job starts without a user, and the code may change before the job starts.
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

from exact_titan import entry
from exact_titan.errors import InputError
from exact_titan.launch import arguments

if TYPE_CHECKING:
    from exact_titan.titan.run_config import RunConfig

FOLDER = "slurm"


def main(argv: list[str] | None = None) -> int:
    """Print the run's folder. If the run cannot start, print one line and return exit code 2."""
    parser = argparse.ArgumentParser(prog="exact_titan.snapshot")
    parser.add_argument("--name", required=True, help="folder name of this start's snapshot")
    parser.add_argument("--ranks", required=True, type=int, help="number of processes of the run")
    parser.add_argument("options", nargs="+", help="options of exact_titan.train")
    args = parser.parse_args(argv)
    return entry.run("exact_titan.train", lambda: _snapshot(args.options, args.name, ranks=args.ranks))


def _snapshot(options: list[str], name: str, *, ranks: int) -> None:
    # A wrong argument is refused before the import of torch.
    given = arguments.read(options)
    from exact_titan.titan import cpu, torch_versions

    torch_versions.install()
    cpu.install()
    from exact_titan.config import config_of
    from exact_titan.runs.run_lock import check_no_run
    from exact_titan.titan.preflight import complete

    os.environ["WORLD_SIZE"] = str(ranks)
    # Other code may print. The standard output of this command contains only the folder's name.
    with contextlib.redirect_stdout(sys.stderr):
        config = complete(config_of(given))
        check_no_run(Path(config.dump_folder))
        write_snapshot(config, options, Path(config.dump_folder) / FOLDER / name)
    print(config.dump_folder)


def write_snapshot(config: "RunConfig", options: list[str], folder: Path) -> None:
    """Write the inputs of a start.

    - ``command.txt``: the command with its options.
    - ``config.json``: the completed config.
    - ``config.toml``: a copy of the TOML, if the options name a TOML or a shipped config.
    - ``packages.txt``: the installed packages with their versions.
    - ``code.tar.gz``: the source of this package.

    Args:
        config: the completed config.
        options: the options that made the config.
        folder: the new folder.

    Raises:
        InputError: if the folder cannot be written. The message names ``dump_folder``.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "command.txt").write_text(f"python -m exact_titan.train {shlex.join(options)}\n", encoding="utf-8")
        (folder / "config.json").write_text(
            json.dumps(config.to_dict(), indent=1, default=str) + "\n", encoding="utf-8"
        )
        source = arguments.read(options).source
        if source is not None and source.file is not None:
            shutil.copyfile(source.file, folder / "config.toml")
        packages = {f"{one.metadata['Name']}=={one.version}\n" for one in distributions()}
        (folder / "packages.txt").write_text("".join(sorted(packages, key=str.lower)), encoding="utf-8")
        with tarfile.open(folder / "code.tar.gz", "w:gz") as archive:
            package = Path(__file__).parent
            for file in sorted((*package.rglob("*.py"), *package.rglob("options.json"))):
                archive.add(file, Path(package.name) / file.relative_to(package))
    except OSError as error:
        raise InputError(f"dump_folder {config.dump_folder} cannot be written: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
