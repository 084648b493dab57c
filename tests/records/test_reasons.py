"""The registry of refusal reasons against the code: none missing, none unused, its page current."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from skyray.records.reasons import page, reason_of, reasons

ROOT = Path(__file__).resolve().parents[2]
SOURCES = {
    path.relative_to(ROOT): list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    for folder in ("platform", "serve")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
SLUG = re.compile(r"[a-z][a-z0-9_]+(:.*)?")
COMPUTED = "?"  # begins with a value: cannot be looked up, take it from a table of literals
# Of HTTP itself: the phrase of a status as a slug.
OF_STATUS = {"not_found", "method_not_allowed"}


def literals(node: ast.AST | None) -> Iterator[str]:
    """Yield the text an expression is, or may be; of an f-string what stands before its values."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.JoinedStr):
        yield from literals(node.values[0])
        if isinstance(node.values[0], ast.FormattedValue):
            yield COMPUTED
    elif isinstance(node, ast.IfExp):
        yield from (*literals(node.body), *literals(node.orelse))
    elif isinstance(node, ast.BoolOp):
        yield from (text for value in node.values for text in literals(value))


def called(node: ast.Call) -> str:
    return getattr(node.func, "id", "") or getattr(node.func, "attr", "")


def says_no(node: ast.AST) -> Iterator[str]:
    """Yield the reasons that a piece of code gives, or might."""
    if isinstance(node, ast.Call):
        name = called(node).lower().lstrip("_")
        if name == "refusal" and len(node.args) > 1:  # an HTTP status comes first
            yield from literals(node.args[1])
        elif name in ("invalidrecord", "refuse", "refusal") and node.args:
            yield from literals(node.args[0])
        for keyword in node.keywords:
            if keyword.arg == "reason":
                yield from literals(keyword.value)
    elif isinstance(node, ast.FunctionDef) and node.returns:  # faults: (reason, detail) or None
        if "tuple[str, str] | None" in ast.unparse(node.returns):
            for part in ast.walk(node):
                if isinstance(part, ast.Return) and isinstance(part.value, ast.Tuple):
                    yield from literals(part.value.elts[0])
    elif (
        isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Tuple)
        and any(getattr(target, "id", "") == "fault" for target in node.targets)
    ):
        yield from literals(node.value.elts[0])


def given() -> Iterator[tuple[str, str]]:
    for path, nodes in SOURCES.items():
        for node in nodes:
            for reason in says_no(node):
                if (
                    SLUG.fullmatch(reason) or reason == COMPUTED
                ):  # others are words, of functions that share the name
                    yield reason, f"{path}:{node.lineno}"


def test_no_reason_is_missing():
    found = dict(given())
    assert len(found) > 80  # the walk does see them
    assert not {reason: where for reason, where in found.items() if reason_of(reason) is None}


def test_no_reason_is_unused():
    words = {text for nodes in SOURCES.values() for node in nodes for text in literals(node)}
    assert not set(reasons()) - words - OF_STATUS


def test_the_walk_sees_every_way_to_refuse():
    code = """
def fault(x) -> tuple[str, str] | None:
    return "by_return", "…"
fault = "by_name", "…"
raise InvalidRecord("by_call", "…")
self.refuse("by_method", "…")
raise Refusal(400, "by_http" if a else "by_other", "…")
InvalidRecord(f"by:{field}", "…")
rows(reason="by_keyword")
refuse(f"{kind}_damaged", "…")
"""
    found = {reason for node in ast.walk(ast.parse(code)) for reason in says_no(node)}
    ways = ("return", "name", "call", "method", "http", "other", "keyword")
    assert found == {f"by_{way}" for way in ways} | {"by:", COMPUTED}


def test_the_page_is_current():
    written = (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8")
    assert written == page(), "run: make docs"


def test_entries_say_what_they_mean_and_what_to_do():
    for reason in reasons().values():
        for text in (reason.means, reason.do):
            assert re.fullmatch(r"[A-Z][^|]+\.", text), reason
        assert re.fullmatch("[a-z0-9_]+:?", reason.name)


def test_no_entry_is_given_twice():
    """YAML takes the last of two in silence."""
    text = (ROOT / "platform" / "skyray" / "records" / "reasons.yaml").read_text(encoding="utf-8")
    names = re.findall(r'^  "?([a-z0-9_]+:?)"?:$', text, re.MULTILINE)
    assert sorted(names) == sorted(reasons())


def test_a_cut_is_known_by_its_prefix():
    assert reason_of("cut:zwarning") is reasons()["cut:"]
    assert reason_of("no_such_reason") is None
