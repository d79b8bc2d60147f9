"""The commands of ``exact-titan study``."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def run(study: Annotated[Positional[str], arg(metavar="STUDY")], *, out: Path) -> int:
    """Train the arms of a study, on the same data from the same start. The same command resumes the study.

    The exit code is 75 after Ctrl-C or SIGTERM: the running runs have saved, and the same command resumes them.

    Example: exact-titan study run studies/smollm2.toml --out outputs/smollm2-study

    Args:
        study: STUDY.toml, or the name of a study that the package ships: smollm2 or paper-llama-3.1-8b.
        out: Folder of the study. A folder of another study is refused.
    """
    raise NotImplementedError


COMMANDS: dict[str, Callable[..., int | None]] = {"run": run}
