"""Contracts of what comes before training: names, columns, transform, settings, search space."""

from __future__ import annotations

import pickle
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin

import numpy as np
from pydantic import BaseModel

from skyray.config import Config, ConfigError
from skyray.families.base import Choice, Columns, DataInfo, Range, Recipe
from skyray.training.contract.case import Case, plain, survives

_FEW = 5  # rows on which settings are tried


def check_identity(case: Case) -> None:
    """Names agree; recipe and data survive the way through a bundle; the family pickles."""
    with case.checking("identity"):
        recipe, kind = case.recipe, case.family_type.recipe_type
        case.require(
            isinstance(recipe, kind), f"a recipe of {kind.__name__}", type(recipe).__name__
        )
        case.require(
            recipe.family == case.family_type.name, f"recipe.family = {case.family_type.name!r}",
            repr(recipe.family),
        )  # fmt: skip
        back = kind.load(plain(recipe.snapshot()))
        case.require(back == recipe, "the same recipe from its snapshot", back)
        info = DataInfo.from_dict(plain(case.info.to_dict()))
        case.require(info == case.info, "the same DataInfo from its JSON", info)
    with case.checking("pickle"):
        family = case.family()
        expected = family.transform(case.columns(True), training=True)
        copy = pickle.loads(pickle.dumps(family))
        found = copy.transform(case.columns(True), training=True)
        case.require_equal(found, expected, "transform after pickling")


def check_columns(case: Case) -> None:
    """The columns asked for are those that datasets hold and requests bring."""
    with case.checking("columns"):
        family = case.family()
        served, trained = family.columns(False), family.columns(True)
        for names, known, where in (
            (served, case.served, "a request"),
            (trained, case.dataset, "a dataset"),
            (family.truth_columns(), case.dataset, "a dataset"),
        ):
            unknown = [name for name in names if name not in known]
            case.require(not unknown, f"columns of {where}: {sorted(known)}", unknown)
            case.require(len(set(names)) == len(names), "each column once", names)
        case.require(set(served) <= set(trained), f"training needs {served} too", trained)


def check_transform(case: Case) -> None:
    """Rows of arrays, the same in training and serving, whatever else the batch holds."""
    with case.checking("transform"):
        whole = case.inputs(training=True)
        _check_shape(case, whole)
        served = case.inputs(training=False)
        _check_shape(case, served)
        case.require(
            set(served) <= set(whole), f"in training all of {sorted(served)}", sorted(whole)
        )
        case.require_equal({n: whole[n] for n in served}, served, "training and serving alike")
        _check_rows_alone(case, whole, training=True)
        _check_rows_alone(case, served, training=False)


def _check_shape(case: Case, inputs: Columns) -> None:
    for name, values in inputs.items():
        case.require(
            isinstance(values, np.ndarray), f"{name}: a numpy array", type(values).__name__
        )
        case.require(
            values.ndim > 0 and len(values) == case.rows, f"{name}: {case.rows} rows", values.shape
        )
        case.require(values.dtype.kind in "fiub", f"{name}: numbers or booleans", values.dtype)


def _check_rows_alone(case: Case, whole: Columns, training: bool) -> None:
    backwards = np.arange(case.rows)[::-1]
    turned = case.inputs(training, backwards)
    case.require_equal(turned, {n: v[backwards] for n, v in whole.items()}, "rows in another order")
    for row in range(0, case.rows, max(1, case.rows // _FEW)):
        alone = case.inputs(training, [row])
        case.require_equal(
            alone, {n: v[[row]] for n, v in whole.items()}, f"row {row} in a batch of one"
        )
    nothing = case.inputs(training, [])
    case.require_equal(nothing, {n: v[:0] for n, v in whole.items()}, "a batch of no rows")


def check_transform_settings(case: Case) -> None:
    """Recipes of equal settings transform alike: each key of the recipe is changed in turn."""
    with case.checking("transform_settings"):
        rows = np.arange(min(_FEW, case.rows))
        settings = case.family().transform_settings()
        case.require(isinstance(settings, dict), "a dict", type(settings).__name__)
        case.require(survives(settings), "JSON types", settings)
        expected = case.inputs(True, rows)
        for key, recipe in altered_recipes(case.recipe):
            try:
                family = case.family(recipe)
                same = family.transform_settings() == settings
            except ConfigError:  # not for these data
                continue
            if same:
                found = family.transform(case.columns(True, rows), training=True)
                case.require_equal(found, expected, f"with another {key}, which no setting holds")


def altered_recipes(recipe: Recipe) -> Iterator[tuple[str, Recipe]]:
    """Yield copies of a recipe with one key changed, for every key that can be."""
    for key, value, annotation in _leaves(recipe):
        for candidate in _others(value, annotation):
            try:
                yield key, recipe.load(_with(recipe.snapshot(), key, candidate))
            except ConfigError:
                continue
            break


def _leaves(config: Config, prefix: str = "") -> Iterator[tuple[str, Any, Any]]:
    for name, about in type(config).model_fields.items():
        value, key = getattr(config, name), f"{prefix}{name}"
        if isinstance(value, Config):
            yield from _leaves(value, f"{key}.")
        elif key != "family" and not isinstance(value, BaseModel | dict):
            yield key, value, about.annotation


def _others(value: Any, annotation: Any) -> list[Any]:
    """Return values that may stand in place of one, by its type and by the type declared."""
    options = [annotation, *get_args(annotation)] if _is_union(annotation) else [annotation]
    named = [v for o in options if get_origin(o) is Literal for v in get_args(o)]
    found: list[Any] = [v for v in named if v != value]
    if isinstance(value, bool):
        found.append(not value)
    elif isinstance(value, int):
        found += [value + 1, value - 1]
    elif isinstance(value, float):
        found += [value * 1.25 + 0.01, value * 0.5]
    elif isinstance(value, str):
        found.append(f"{value}x")
    elif isinstance(value, tuple) and value:
        found += [value[:-1], (*value, value[-1])]
    elif value is None:
        found += [8, 0.5, 1, True]
    return found


def _is_union(annotation: Any) -> bool:
    return get_origin(annotation) in (Union, types.UnionType)


def _with(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    *parents, leaf = key.split(".")
    node = tree
    for name in parents:
        node = node[name]
    node[leaf] = value
    return tree


def check_search_space(case: Case) -> None:
    """Every hyper-parameter is a key of the recipe that takes each value a sweep may draw."""
    with case.checking("search_space"):
        for key, domain in case.family_type.search_space(case.recipe).items():
            case.require(
                isinstance(domain, Choice | Range), f"{key}: Choice or Range", type(domain).__name__
            )
            if isinstance(domain, Range):
                case.require(domain.low < domain.high, f"{key}: low < high", domain)
                case.require(not domain.log or domain.low > 0, f"{key}: low > 0 for log", domain)
            values = domain.values if isinstance(domain, Choice) else (domain.low, domain.high)
            case.require(len(values) > 0, f"{key}: values", "none")
            for value in values:
                written = list(value) if isinstance(value, tuple) else value
                case.family(case.recipe.override([f"{key}={written}"])).stages()
