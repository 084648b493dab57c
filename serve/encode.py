"""Prediction tables → the service's answers, as JSON or Arrow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from skyray.records import InvalidRecord, Record, Spectrum

ARROW_STREAM = "application/vnd.apache.arrow.stream"
_PROBABILITY = "p_"

Items = Sequence[Record | InvalidRecord]


def refuse_unanswered(items: Items, table: pa.Table | None) -> tuple[list, pa.Table | None]:
    """Turn records the model has no answer for (its column ``problem``) into refusals.

    Returns the items with `InvalidRecord` in those places, and the table without their rows.
    """
    if table is None or "problem" not in table.column_names:
        return list(items), table
    problems = table.column("problem").to_pylist()
    rows = iter(problems)
    answered: list[Record | InvalidRecord] = []
    for item in items:
        problem = "" if isinstance(item, InvalidRecord) else next(rows)
        refused = InvalidRecord("not_for_this_model", problem, item.source, item.object_id)
        answered.append(refused if problem else item)
    kept = table.filter(pa.array([not problem for problem in problems]))
    return answered, kept.drop_columns(["problem"])


def json_answers(
    items: Items, table: pa.Table | None, with_spectrum: bool = False
) -> list[dict[str, Any]]:
    """Return one answer an item, in the order of the request.

    Parameters
    ----------
    items : sequence
        What was decoded: records, and refusals in the places of unusable ones.
    table : pa.Table
        Predictions of the records among `items`, in their order; None where there are none.
    with_spectrum : bool
        Also give back the wavelength and flux of spectra, for a page that shows them.
    """
    rows = iter([] if table is None else table.to_pylist())
    answers = []
    for item in items:
        if isinstance(item, InvalidRecord):
            answers.append(refused_answer(item))
            continue
        answer = _answer(next(rows))
        if with_spectrum and isinstance(item, Spectrum):
            answer["spectrum"] = {
                "wavelength": [round(value, 3) for value in item.wavelength.tolist()],
                "flux": [_plain(v) if used else None for v, used in zip(
                    item.flux.tolist(), (item.ivar > 0) & ~item.mask, strict=True)],
            }  # fmt: skip
        answers.append(answer)
    return answers


def refused_answer(refused: InvalidRecord) -> dict[str, Any]:
    """Return the answer for a record that cannot be used."""
    return {
        "object_id": refused.object_id,
        "error": {"reason": refused.reason, "detail": refused.detail},
    }


def _answer(row: dict[str, Any]) -> dict[str, Any]:
    answer = {k: _plain(v) for k, v in row.items() if not k.startswith(_PROBABILITY)}
    probabilities = {
        name.removeprefix(_PROBABILITY): _plain(value)
        for name, value in row.items()
        if name.startswith(_PROBABILITY)
    }
    return answer | ({"probabilities": probabilities} if probabilities else {})


def _plain(value: Any) -> Any:
    """JSON has no NaN: what is not known is null."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def arrow_answers(items: Items, table: pa.Table | None) -> bytes:
    """Return an Arrow IPC stream: the catalogue's columns, error_reason and error_detail.

    A refused record has a row of nulls with its object_id and the reason.
    """
    rows, position = [], 0
    for item in items:
        refused = isinstance(item, InvalidRecord)
        rows.append(None if refused else position)
        position += not refused
    if table is None:
        table = pa.table({"object_id": pa.array([], pa.string())})
    answers = table.take(pa.array(rows, pa.int64()))
    at = answers.column_names.index("object_id")
    answers = answers.set_column(at, "object_id", [[item.object_id for item in items]])
    for name in ("reason", "detail"):
        texts = [getattr(item, name, None) for item in items]
        answers = answers.append_column(f"error_{name}", pa.array(texts, pa.string()))
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, answers.schema) as writer:
        writer.write_table(answers)
    return sink.getvalue().to_pybytes()
