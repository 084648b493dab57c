"""The floors of the house: who may import whom (docs/architecture.md)."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "platform" / "skyray"

# From the ground up. A room imports from floors below it only, and never from its own floor.
FLOORS = (
    {"config", "records"},
    {"cards"},
    {"analysis", "models", "transforms"},
    {"pages", "readers"},
    {"simulate"},
    {"families"},
    {"runtime"},
    {"data"},
    {"bundles"},
    {"training"},
    {"inference"},
    {"search"},
    {"workflows"},
    {"cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
ENGINE = {"runtime", "data", "bundles", "training", "inference", "search"}
PURE = {room for room, floor in FLOOR.items() if floor <= FLOOR["families"]}
FOREIGN_TO_PURE = {"ray", "mlflow", "fastapi", "starlette", "requests", "uvicorn", "httpx"}
FAMILIES = {p.parent.name for p in SOURCES.glob("families/*/family.py")}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(SOURCES.rglob("*.py")):
        name = ".".join(["skyray", *path.relative_to(SOURCES).with_suffix("").parts])
        yield name.removesuffix(".__init__"), path


def room(module: str) -> str:
    return module.split(".")[1] if module.startswith("skyray.") else ""


def statements(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yield what runs when a module is imported: not in functions, not for type checkers only."""
    waiting = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            waiting += node.orelse
            continue
        yield node
        waiting += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        waiting += [line for part in getattr(node, "handlers", ()) for line in part.body]


def imports_of(path: Path, everywhere: bool = True) -> set[str]:
    """Return the dotted names a file imports, in functions too or as it is imported itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if everywhere else statements(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ALL = dict(modules())
each_module = pytest.mark.parametrize(("name", "path"), ALL.items(), ids=list(ALL))


@each_module
def test_imports_only_from_below(name, path):
    here = room(name)
    for target in imports_of(path):
        there = room(target)
        if here and there and there != here:
            assert FLOOR[there] < FLOOR[here], f"{name} imports {target}: not from a floor below"


@each_module
def test_pure_rooms_know_no_ray_mlflow_or_http(name, path):
    if room(name) in PURE:
        assert not {target.split(".")[0] for target in imports_of(path)} & FOREIGN_TO_PURE


@each_module
def test_engine_knows_no_particular_family(name, path):
    if room(name) in ENGINE:
        named = {target for target in imports_of(path) if target.startswith("skyray.families.")}
        assert not {target for target in named if target.split(".")[2] in FAMILIES}


@each_module
def test_families_do_not_import_each_other(name, path):
    known = ("base", "data_info", "exports", "recipe", *name.split(".")[2:3])
    if room(name) == "families" and len(known) > 3:
        for target in imports_of(path):
            if target.startswith("skyray.families."):
                assert target.split(".")[2] in known, f"{name} imports {target}"


def module_of(target: str) -> str:
    """Return the module a dotted name lies in; '' where it is not one of ours."""
    while target and target not in ALL:
        target = target.rpartition(".")[0]
    return target


def test_no_circle_among_modules():
    graph = {
        name: {module_of(target) for target in imports_of(path, everywhere=False)} - {name, ""}
        for name, path in ALL.items()
    }
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError with the circle


def test_every_room_stands_on_a_floor():
    assert {room(name) for name in ALL} - {""} == set(FLOOR)


def test_tests_mirror_the_rooms():
    folders = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert folders - set(FLOOR) == {"serve"}


def test_top_level_folders_are_no_packages():
    for folder in ("platform", "jobs", "serve", "datasets", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
