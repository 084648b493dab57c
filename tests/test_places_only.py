"""Whatever may be a URI goes through `skyray.runtime.places`: no ``Path(out)``, no ``open(uri)``.

In the rooms that read and write, `Path`, `open`, ``os.…``, ``os.path.…``, `shutil` and `glob` take
only what is local for sure: a literal, ``__file__``, a parameter that is a `Path` already, what
``places.local_folder``, ``local_copy``, `tempfile` or a checkpoint's ``as_directory`` gave, and
what is made of these. And no name is put under a place by an f-string: ``places.join`` keeps a
place's options at its end.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = [
    *(f"platform/skyray/{room}" for room in (
        "runtime", "data", "bundles", "training", "inference", "search", "workflows")),
    "jobs", "serve",
]  # fmt: skip
THE_MODULE = {"platform/skyray/runtime/places.py", "platform/skyray/runtime/filesystems.py"}

# (file, function, what) → why it may.
ALLOWED = {
    ("jobs/demo.py", "parse", "type=pathlib.Path"): "the demo is of one machine, its folder local",
    ("platform/skyray/runtime/noise.py", "_new_log", "pathlib.Path"): "asks whether it is local",
    ("platform/skyray/data/prepared_space.py", "_remove", "os.walk"): "asks whether it is local",
    ("platform/skyray/data/prepared_space.py", "_remove", "os.rmdir"): "asks whether it is local",
}

_GIVE_LOCAL = {
    "local_folder", "local_copy", "as_directory", "TemporaryDirectory", "NamedTemporaryFile",
    "mkdtemp", "mkstemp", "gettempdir", "getcwd", "cwd", "getfile",
}  # fmt: skip
_OS = {
    "chmod", "link", "listdir", "lstat", "makedirs", "mkdir", "open", "remove", "removedirs",
    "rename", "renames", "replace", "rmdir", "scandir", "stat", "symlink", "truncate", "unlink",
    "utime", "walk",
}  # fmt: skip
_FORBIDDEN = (
    {"open", "io.open"}
    | {f"pathlib.{kind}" for kind in ("Path", "PosixPath", "PurePath", "PurePosixPath")}
    | {f"os.{call}" for call in _OS}
)
_FORBIDDEN_MODULES = ("os.path.", "shutil.", "glob.")
_PLACES = {"out", "place", "uri"}  # names that places go by


def offences(source: str) -> set[tuple[int, str, str]]:
    """Return line, function and what of all that treats as a local path what may be a URI."""
    tree = ast.parse(source)
    imported = dict(_imported(tree))
    return {
        (node.lineno, function, what)
        for function, part in _functions(tree)
        for local in [_local_names(part)]
        for node in ast.walk(part)
        if (what := _offence(node, local, imported))
    }


def _imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """Yield what a name of the module stands for: ``P`` for ``pathlib.Path``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield (alias.asname, alias.name) if alias.asname else (alias.name,) * 2
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield alias.asname or alias.name, f"{node.module}.{alias.name}"


def _functions(tree: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the functions of a module and of its classes, and statements outside of them."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield from _functions(node)
        else:
            yield getattr(node, "name", ""), node


def _local_names(function: ast.AST) -> set[str]:
    """Return the names that hold something local wherever they occur in a function."""
    local = {"__file__"}
    bound: list[tuple[ast.AST, ast.AST]] = []
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and ast.unparse(node.annotation or node) == "Path":
            local.add(node.arg)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            bound.append((node.optional_vars, node.context_expr))
        elif isinstance(node, ast.Assign):
            bound += [(target, node.value) for target in node.targets]
    for _ in bound:  # what is made of what is made of …
        for target, value in bound:
            if _is_local(value, local):
                local |= {name.id for name in ast.walk(target) if isinstance(name, ast.Name)}
    return local


def _is_local(node: ast.AST, local: set[str]) -> bool:
    match node:
        case ast.Constant():
            return True
        case ast.Name():
            return node.id in local
        case ast.Attribute(attr="__file__"):
            return True
        case ast.Attribute() | ast.Subscript() | ast.FormattedValue():
            return _is_local(node.value, local)
        case ast.BinOp():
            return _is_local(node.left, local)
        case ast.JoinedStr():
            return _is_local(node.values[0], local) if node.values else True
        case ast.Call():
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = getattr(called, "id", called)
            return (
                called in _GIVE_LOCAL
                or _is_local(node.func, local)
                or (called in {"Path", "str", "fspath", "enter_context"} and bool(node.args)
                    and _is_local(node.args[0], local))
            )  # fmt: skip
    return False


def _offence(node: ast.AST, local: set[str], imported: dict[str, str]) -> str:
    """Return what a node does that only a local path bears, or nothing."""
    if isinstance(node, ast.keyword) and node.arg == "type":
        called = _dotted(node.value, imported)
        return f"type={called}" if called in _FORBIDDEN else ""
    if isinstance(node, ast.JoinedStr) and len(node.values) > 1:
        first, second = node.values[:2]
        named = isinstance(first, ast.FormattedValue) and getattr(first.value, "id", "") in _PLACES
        slash = isinstance(second, ast.Constant) and str(second.value).startswith("/")
        return "f-string" if named and slash and not _is_local(first, local) else ""
    if not isinstance(node, ast.Call) or not node.args or _is_local(node.args[0], local):
        return ""
    called = _dotted(node.func, imported)
    return called if called in _FORBIDDEN or called.startswith(_FORBIDDEN_MODULES) else ""


def _dotted(node: ast.AST, imported: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, imported)}.{node.attr}"
    return imported.get(node.id, node.id) if isinstance(node, ast.Name) else ""


FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
FOUND = {
    (name, function, what): line
    for path in FILES
    for name in [path.relative_to(ROOT).as_posix()]
    if name not in THE_MODULE
    for line, function, what in offences(path.read_text(encoding="utf-8"))
}


def test_rooms_treat_no_place_as_a_local_path():
    new = {key: line for key, line in FOUND.items() if key not in ALLOWED}
    assert not new, "use skyray.runtime.places:\n" + "\n".join(
        f"  {name}:{line}: {function}: {what}" for (name, function, what), line in new.items()
    )


def test_what_is_allowed_is_there():
    assert set(ALLOWED) <= set(FOUND)


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("folder = Path(out)", "pathlib.Path"),
        ("folder = pathlib.Path(out) / 'figures'", "pathlib.Path"),
        ("folder = P(f'{out}-x')", "pathlib.Path"),
        ("write(Path(out).absolute())", "pathlib.Path"),
        ("rows = [Path(one).name for one in out]", "pathlib.Path"),
        ("stream = open(out, 'w')", "open"),
        ("os.makedirs(out, exist_ok=True)", "os.makedirs"),
        ("makedirs(out)", "os.makedirs"),
        ("name = os.path.basename(out)", "os.path.basename"),
        ("name = basename(out)", "os.path.basename"),
        ("shutil.copy(out, 'here')", "shutil.copy"),
        ("place = f'{out}/index.html'", "f-string"),
        ("def inner(): return Path(out)", "pathlib.Path"),
        ("parser.add_argument('--out', type=Path)", "type=pathlib.Path"),
        ("with places.local_folder(out) as folder: write(Path(out))", "pathlib.Path"),
    ],
)
def test_a_new_one_is_found(line, what):
    assert offences(f"{_IMPORTS}def work(out, folder: str):\n    {line}\n") == {
        (_LINE, "work", what)
    }


@pytest.mark.parametrize(
    "line",
    [
        "here = Path(__file__).with_name('page.html')",
        "here = Path(skyray.__file__).parent",
        "folder = Path('demo')",
        "with places.local_folder(out) as here: Path(here, 'a').write_text('')",
        "with tempfile.TemporaryDirectory() as here: stream = open(f'{here}/a', 'w')",
        "with point.as_directory() as here: state = (Path(here) / 'state').read_bytes()",
        "handle, aside = tempfile.mkstemp(); os.link(aside, out)",
        "with places.local_copy(out) as copy: below = copy / 'a'; open(below)",
        "place = places.join(out, 'index.html')",
        "path = os.environ['PATH'].split(os.pathsep)",
        "data = Dataset.open(out)",
        "label = f'{recipe}/{out}'",
        "shown = made.name; open(made)",
    ],
)
def test_what_is_local_for_sure_is_not(line):
    assert not offences(f"{_IMPORTS}def work(out, made: Path):\n    {line}\n")


_IMPORTS = (
    "import os\nimport pathlib\nimport shutil\nimport tempfile\nfrom os import makedirs\n"
    "from os.path import basename\nfrom pathlib import Path\nfrom pathlib import Path as P\n"
)
_LINE = _IMPORTS.count("\n") + 2
