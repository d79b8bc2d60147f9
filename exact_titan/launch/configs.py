"""The configs that the package ships, and the config that a name means.

The files are in ``train_configs``, the corpora of ``exact-titan pack`` in ``train_configs/corpora``, and the studies of
``exact-titan study run`` in ``studies``. A wheel has the same files. In the repository ``exact_titan/train_configs``
and ``exact_titan/studies`` are links to the folders.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exact_titan.errors import InputError, did_you_mean
from exact_titan.launch.options import table

FOLDER = Path(__file__).parents[1] / "train_configs"
STUDIES = Path(__file__).parents[1] / "studies"


@functools.cache
def shipped() -> dict[str, Path]:
    """Return the shipped configs of runs by name: the name of the file without ``.toml``."""
    return _tomls(FOLDER)


@functools.cache
def shipped_corpora() -> dict[str, Path]:
    """Return the shipped corpora by name."""
    return _tomls(FOLDER / "corpora")


@functools.cache
def shipped_studies() -> dict[str, Path]:
    """Return the shipped studies by name."""
    return _tomls(STUDIES)


def _tomls(folder: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted(folder.glob("*.toml"), key=lambda file: _natural(file.stem))}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: 4k before 16k."""
    parts = "".join(c if c.isdigit() else f" {c} " for c in name).split()
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


@dataclass(frozen=True)
class Source:
    """The config that a name means.

    Attributes:
        name: the name as given.
        file: the TOML, or None for a recipe.
        is_shipped: whether the package ships the file.
    """

    name: str
    file: Path | None = None
    is_shipped: bool = False

    def __str__(self) -> str:
        if self.file is None:
            return f"recipe {self.name}"
        return f"{self.file} (shipped with exact_titan)" if self.is_shipped else str(self.file)


def find(name: str, *, where: str) -> Source:
    """Return the config of a name: a file, a recipe, ``NAME.toml`` in the current folder, or a shipped config.

    The first match of this order wins.

    Args:
        name: a path, or a bare name with or without ``.toml``.
        where: the name of the argument, for the message.

    Raises:
        InputError: if nothing has this name.
    """
    path = Path(name)
    stem = path.name.removesuffix(".toml")
    bare = name in (stem, f"{stem}.toml")
    if path.is_file() and name not in table().recipes:
        return Source(name, path)
    if name in table().recipes:
        return Source(name)
    if bare and Path(f"{stem}.toml").is_file():
        return Source(name, Path(f"{stem}.toml"))
    if bare and stem in shipped():
        return Source(name, shipped()[stem], is_shipped=True)
    if path.is_dir():
        raise InputError(f"{where} is {name!r}, but that is a folder: name a TOML file, such as {path / 'run.toml'}")
    local = [file.name for file in (path.parent.glob("*.toml") if path.parent.is_dir() else ())]
    known = [*local, *table().recipes, *shipped()] if bare else local
    if name.endswith(".toml") or not bare:
        hint = f"; a config of this name is shipped: give {stem} alone" if stem in shipped() else ""
        raise InputError(f"{name}: there is no such file{hint or did_you_mean(path.name, known)}")
    raise InputError(
        f"{where} is {name!r}: there is no such file, recipe or shipped config"
        f"{did_you_mean(name, known) or '; `exact-titan configs` lists the recipes and configs'}"
    )


def find_study(name: str) -> Path:
    """Return the file of a study: a file, ``NAME.toml`` in the current folder, or a shipped study.

    Raises:
        InputError: if nothing has this name.
    """
    stem = name.removesuffix(".toml")
    for path in (Path(name), Path(f"{stem}.toml")):
        if path.is_file():
            return path
    if stem in shipped_studies():
        return shipped_studies()[stem]
    hint = did_you_mean(stem, shipped_studies()) or f"; the shipped studies are {', '.join(shipped_studies())}"
    raise InputError(f"{name}: there is no such file or shipped study{hint}")


def with_shipped_corpora(sources: Sequence[str]) -> list[str]:
    """Return the sources of ``exact-titan pack`` with the paths of shipped corpora for their bare names.

    A file or folder of the same name in the current folder wins, also with ``.toml`` appended.
    """
    paths = []
    for source in sources:
        stem = source.removesuffix(".toml")
        if Path(source).exists() or stem not in shipped_corpora():
            paths.append(source)
        elif Path(f"{stem}.toml").exists():
            paths.append(f"{stem}.toml")
        else:
            paths.append(str(shipped_corpora()[stem]))
    return paths


def listing() -> str:
    """Return one line per recipe, config, corpus and study: the name, and the first line of its description."""
    configs = {name: _first_line(file) for name, file in shipped().items()}
    corpora = {name: _first_line(file) for name, file in shipped_corpora().items()}
    studies = {name: _first_line(file) for name, file in shipped_studies().items()}
    width = max(map(len, (*table().recipes, *configs, *corpora, *studies)))
    lines = []
    for title, entries in {
        'Recipes, for `exact-titan train NAME` and for `recipe = "NAME"` in a TOML:': table().recipes,
        "Configs, for `exact-titan train NAME`:": configs,
        "Corpora, for `exact-titan pack NAME`:": corpora,
        "Studies, for `exact-titan study run NAME`:": studies,
    }.items():
        lines += ["", title, *(f"  {name:<{width}}  {text}" for name, text in entries.items())]
    return "\n".join(lines[1:])


def copy(name: str, folder: Path) -> Path:
    """Copy a shipped config, corpus or study into a folder. Return the new file.

    Raises:
        InputError: if nothing of this name is shipped, or if the file exists.
    """
    stem = name.removesuffix(".toml")
    known = shipped() | shipped_corpora() | shipped_studies()
    if stem not in known:
        recipe = f'; {name} is a recipe: start a TOML with recipe = "{name}"' if name in table().recipes else ""
        raise InputError(
            f"--copy is {name!r}: no such config is shipped"
            f"{recipe or did_you_mean(stem, known) or '; `exact-titan configs` lists the configs'}"
        )
    out = folder / f"{stem}.toml"
    try:
        if out.exists():
            raise InputError(f"{out} exists: name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with out.open("xb") as file:
            file.write(known[stem].read_bytes())
    except OSError as error:
        raise InputError(f"{out} cannot be written: {error}") from None
    return out


def _first_line(file: Path) -> str:
    with file.open(encoding="utf-8") as lines:
        return next(lines).removeprefix("#").strip()
