"""Frozen, validated configuration: the base every recipe is built from.

A configuration is a pydantic model that cannot change after construction and refuses unknown
keys, so a typing error in ``--set`` is an error message and never a silently ignored option.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names key, finding and remedy."""


class Config(BaseModel):
    """Base of all configurations: frozen, typed, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def snapshot(self) -> dict[str, Any]:
        """Return the resolved configuration as plain JSON types, for a run record or a bundle."""
        return self.model_dump(mode="json")

    def digest(self) -> str:
        """Return a short hash of the resolved configuration (12 hex digits)."""
        text = json.dumps(self.snapshot(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def load(cls, snapshot: dict[str, Any]) -> Self:
        """Build and validate a configuration from plain types.

        Raises
        ------
        ConfigError
            One line for each offending key: its dotted name, the value found and what was expected.
        """
        try:
            return cls.model_validate(snapshot)
        except ValidationError as error:
            raise ConfigError(_explain(cls, error)) from None

    def override(self, assignments: Iterable[str]) -> Self:
        """Return a copy with dotted ``key=value`` assignments applied and validated.

        Values are read as YAML: ``epochs=20``, ``lr=1e-3`` and ``widths=[8,16]`` have their types.
        """
        tree = self.snapshot()
        for assignment in assignments:
            key, separator, text = assignment.partition("=")
            if not separator:
                raise ConfigError(f"--set {assignment!r}: expected key=value")
            _assign(tree, key.strip(), _parse_value(text))
        return type(self).load(tree)


def _parse_value(text: str) -> Any:
    if not text.strip():
        return ""  # YAML reads nothing as null, which is written out
    value = yaml.safe_load(text)
    if isinstance(value, str):  # YAML 1.1 reads 1e-3 as text
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        if not isinstance(node.get(name), dict):
            raise ConfigError(f"--set {key}: no section {name!r}; known here: {sorted(node)}")
        node = node[name]
    if leaf not in node:
        raise ConfigError(f"--set {key}: unknown key {leaf!r}; known here: {sorted(node)}")
    node[leaf] = value


def _explain(cls: type[Config], error: ValidationError) -> str:
    lines = [f"{cls.__name__} is not valid:"]
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"]) or "(whole)"
        lines.append(f"  {key}: {item['msg']} (found {item['input']!r})"[:300])
    return "\n".join(lines)
