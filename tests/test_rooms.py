"""The rooms of the package: each room imports only rooms above it, and no imports form a circle."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = ROOT / "exact_titan"

ROOMS = [
    ("system", "errors", "slurm_options"),
    ("exposure",),
    ("documents",),
    ("dataset",),
    ("packing",),
    ("sampling",),
    ("models",),
    ("runs",),
    ("evaluation",),
    ("study",),
    ("reports",),
    ("launch",),
    ("titan.model",),
    ("titan",),
    # planning traces the run that titan builds.
    ("planning",),
    (
        "config_registry",
        "config",
        "describe_options",
        "commands",
        "data_commands",
        "study_commands",
        "evaluation_commands",
        "study_machine",
        "study_configs",
        "train",
        "snapshot",
        "cli",
        "entry",
        "__main__",
    ),
]
"""The rooms from top to bottom. The first and the last line also name files, the other lines name folders."""

MAY_NOT_IMPORT = {
    "exposure": ("exact_titan", "torchtitan"),
    "documents": ("torchtitan",),
    "dataset": ("torchtitan",),
    "packing": ("torchtitan",),
    "sampling": ("torch", "torchtitan"),
    "models": ("torchtitan",),
    "runs": ("torchtitan",),
    "evaluation": ("torchtitan",),
    "study": ("torch", "torchtitan"),
    "reports": ("torchtitan",),
    "launch": ("torchtitan",),
}
"""Packages that a room must not import directly. ``exact_titan`` means the other rooms."""


def room_of(module: str) -> int:
    """Return the index in ROOMS of a module such as ``exact_titan.titan.model.rope``. -1 for the package itself."""
    name = module.removeprefix("exact_titan").removeprefix(".")
    if not name:
        return -1
    found = [
        (len(room), index)
        for index, names in enumerate(ROOMS)
        for room in names
        if name == room or name.startswith(f"{room}.")
    ]
    assert found, f"{module} is in no room: move the module into a room, or add its room to tests/test_rooms.py"
    return max(found)[1]


@cache
def modules(package: Path) -> dict[str, Path]:
    """Return every module of the package by its name."""
    files = {file: file.relative_to(package.parent).with_suffix("") for file in sorted(package.rglob("*.py"))}
    return {".".join(p.parts).removesuffix(".__init__"): file for file, p in files.items()}


def imports(file: Path) -> set[str]:
    """Return every module that a file imports: at the top, in functions and for types."""
    return imports_of(file.read_text(encoding="utf-8"))


@cache
def imports_of(program: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"from {'.' * node.level}{node.module or ''}: import with the full name"
            assert node.module is not None
            found.add(node.module)
            # `from exact_titan.titan import start` also imports a module.
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def known(imported: set[str], package: Path) -> set[str]:
    """Return the imported modules that belong to the package."""
    return imported & modules(package).keys()


def upward_imports(package: Path) -> list[str]:
    """Return ``A imports B`` for every import of a room that is not above the importing room."""
    wrong = []
    for module, file in modules(package).items():
        for other in sorted(known(imports(file), package)):
            # A package's own __init__ is part of any import of its modules.
            if room_of(other) > room_of(module) and not module.startswith(f"{other}."):
                wrong.append(f"{module} imports {other}")
    return wrong


def circles(package: Path) -> list[list[str]]:
    """Return the circles of modules that import each other, at the top of a file or in a function."""
    graph = {module: known(imports(file), package) - {module} for module, file in modules(package).items()}
    found, done = [], set()

    def walk(module: str, path: list[str]) -> None:
        if module in path:
            found.append([*path[path.index(module) :], module])
            return
        if module in done:
            return
        for other in sorted(graph[module]):
            walk(other, [*path, module])
        done.add(module)

    for module in graph:
        walk(module, [])
    return found


def test_each_room_imports_only_rooms_above_it():
    assert upward_imports(PACKAGE) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circles(PACKAGE) == []


def test_preflight_and_start_need_no_import_for_types_alone():
    for name in ("preflight", "start"):
        assert "TYPE_CHECKING" not in (PACKAGE / f"titan/{name}.py").read_text()


@pytest.mark.parametrize("room", MAY_NOT_IMPORT)
def test_a_room_imports_only_its_libraries(room):
    for module, file in modules(PACKAGE).items():
        if not module.startswith(f"exact_titan.{room}"):
            continue
        outside = {name for name in imports(file) if not name.startswith(f"exact_titan.{room}")}
        assert not [name for name in outside if name.split(".")[0] in MAY_NOT_IMPORT[room]], module


@pytest.mark.parametrize(
    ("importer", "imported", "wrong"),
    [
        (
            "sampling/order.py",
            "titan.loader",
            "exact_titan.sampling.order imports exact_titan.titan.loader",
        ),
        (
            "titan/model/rope.py",
            "titan.loss",
            "exact_titan.titan.model.rope imports exact_titan.titan.loss",
        ),
        ("exposure/context.py", "cli", "exact_titan.exposure.context imports exact_titan.cli"),
    ],
)
@pytest.mark.parametrize("where", ["top", "function", "types"])
def test_a_new_upward_import_is_found(tmp_path, importer, imported, wrong, where):
    package = copy_of_package(tmp_path)
    text = {
        "top": f"import exact_titan.{imported}\n",
        "function": f"def f():\n    import exact_titan.{imported}\n",
        "types": f"from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import exact_titan.{imported}\n",
    }[where]
    with (package / importer).open("a") as out:
        out.write(text)
    assert wrong in upward_imports(package)


def test_a_new_circle_inside_a_room_is_found(tmp_path):
    package = copy_of_package(tmp_path)
    with (package / "titan/stop.py").open("a") as out:
        out.write("def f():\n    from exact_titan.titan import validate\n")
    assert any({"exact_titan.titan.stop", "exact_titan.titan.validate"} <= set(circle) for circle in circles(package))


def copy_of_package(folder: Path) -> Path:
    for file in modules(PACKAGE).values():
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(file.read_bytes())
    return folder / "exact_titan"


def test_a_process_without_figures_does_not_import_matplotlib():
    program = """if True:
        import sys
        from exact_titan.titan import cpu, torch_versions
        torch_versions.install()
        cpu.install()
        from exact_titan import config, snapshot, train
        from exact_titan.titan import trainer
        from exact_titan.reports import exposure, figures, runs, study
        print(sorted(name for name in sys.modules if name.split(".")[0] == "matplotlib"))
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "[]"
