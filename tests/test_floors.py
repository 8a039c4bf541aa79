"""The house has floors: a module imports from its own room and from rooms below, never from one above."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# from the ground up; rooms of one floor may use those that stand before them in its line
FLOORS = (
    *("utils.base", "losses", "models", "datasets"),
    *("utils.settings", "utils.metrics", "utils.engine", "utils.run"),
    *("utils.packs", "utils.features", "utils.heads", "utils.export", "utils.plots", "utils.report"),
    "utils.reproduce",
)
# programs of their own in the rooms of what they are about
DOORS = ("datasets/check.py", "datasets/to_folder.py")
PACKAGES = ("losses", "models", "datasets", "utils")
MODULES = sorted(path for name in PACKAGES for path in ROOT.glob(f"{name}/**/*.py"))


def room(module: str) -> str | None:
    parts = module.split(".")
    name = ".".join(parts[: 2 if parts[0] == "utils" else 1])
    return name if name in FLOORS else None


def imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_down_only() -> None:
    upward, looked_at = [], 0
    for path in MODULES:
        name = path.relative_to(ROOT).as_posix()
        own = room(name.removesuffix(".py").replace("/", "."))
        if own is None or name in DOORS:
            continue
        looked_at += 1
        above = FLOORS[FLOORS.index(own) + 1 :]
        upward += [(name, module) for module in imported(path) if room(module) in above]
    assert upward == [] and looked_at > 100


def test_every_module_of_utils_has_a_room() -> None:
    loose = [path for path in MODULES if path.parts[-2] == "utils" and path.name != "__init__.py"]
    assert loose == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    arrows = {}
    for path in MODULES:
        own = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in own if part != "__init__")
        arrows[name] = {module for found in imported(path) for module in (found, found.rpartition(".")[0])}
    TopologicalSorter(arrows).prepare()  # raises a CycleError that names the circle
