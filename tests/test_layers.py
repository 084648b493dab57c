"""The floors of the house: who may import whom (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ROOT / "platform" / "skyray"

FLOOR = {
    "records": 0, "cards": 0, "config": 0,
    "readers": 1, "simulate": 1, "transforms": 1, "models": 1, "analysis": 1,
    "pages": 1,
    "families": 2,
    "runtime": 3,
    "data": 4,
    "bundles": 5,
    "training": 6,
    "inference": 7,
    "search": 8,
    "workflows": 9,
    "cli": 10,
}  # fmt: skip
ENGINE = ("runtime", "data", "bundles", "training", "inference", "search")
PURE = (
    "records",
    "cards",
    "config",
    "readers",
    "simulate",
    "transforms",
    "models",
    "analysis",
    "pages",
)
FOREIGN_TO_PURE = {"ray", "mlflow", "fastapi", "starlette", "requests", "uvicorn"}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def modules():
    for path in sorted(SOURCES.rglob("*.py")):
        name = ".".join(["skyray", *path.relative_to(SOURCES).with_suffix("").parts])
        yield name.removesuffix(".__init__"), path


def imports_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


ALL = list(modules())


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_imports_only_from_below(name, path):
    here = room(name)
    if not here:
        return
    for target in imports_of(path):
        there = room(target) if target.startswith("skyray.") else ""
        if there in FLOOR and there != here:
            assert FLOOR[there] <= FLOOR[here], f"{name} imports {target} from a floor above"


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_pure_rooms_know_no_ray_mlflow_or_http(name, path):
    if room(name) in PURE:
        foreign = {target.split(".")[0] for target in imports_of(path)} & FOREIGN_TO_PURE
        assert not foreign


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_engine_knows_no_particular_family(name, path):
    if room(name) in ENGINE:
        families = {p.name for p in (SOURCES / "families").iterdir() if p.is_dir()}
        for target in imports_of(path):
            parts = target.split(".")
            assert not (parts[:2] == ["skyray", "families"] and parts[2] in families), target


@pytest.mark.parametrize(("name", "path"), ALL, ids=[name for name, _ in ALL])
def test_families_do_not_import_each_other(name, path):
    own = name.split(".")[2:3]
    if room(name) == "families" and own and own != ["base"]:
        for target in imports_of(path):
            parts = target.split(".")
            if parts[:2] == ["skyray", "families"]:
                assert parts[2] in ("base", *own), f"{name} imports {target}"


def test_every_room_stands_on_a_floor():
    rooms = {room(name) for name, _ in ALL} - {""}
    assert rooms == set(FLOOR)


def test_top_level_folders_are_no_packages():
    for folder in ("platform", "jobs", "serve", "datasets", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()
