"""A bundle's network as one ONNX file, for programs that know nothing of skyray.

The file holds all that follows the network too (temperature, ensembles, routing, in-domain gate),
and says in its metadata what goes in and what comes out. It is kept only if onnxruntime gives from
it what the bundle answers.
"""

from __future__ import annotations

import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.onnx.symbolic_helper import parse_args

import skyray
from skyray.bundles.bundle import Predictor, bundle_digest, check_layout, trained_model
from skyray.bundles.named import located
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.rows import columns_of
from skyray.families.base import Columns, Export, Family, NotExportable
from skyray.runtime import places
from skyray.simulate.base import make_simulator

OPSET = 18  # the first that resizes with antialiasing; onnxruntime 1.14 and later
MOST_BYTES = 2_000_000_000  # of weights: what one protobuf message holds
_FORMAT = "1"


@dataclass(frozen=True)
class OnnxExport:
    """Where the file is, what goes in and out, and how far it differs from the bundle."""

    onnx: str
    version: str
    inputs: list[str]
    outputs: list[str]
    rows: int
    differences: dict[str, float]


def export_onnx(
    bundle: str | os.PathLike, out: str, data: str | None = None, rows: int = 64
) -> OnnxExport:
    """Write a bundle's network to `out` as ONNX, after holding it against the bundle.

    Parameters
    ----------
    data : str, optional
        Dataset whose objects it is tried on, evenly spread; default: mock objects of the bundle's
        card.
    rows : int
        How many objects.

    Raises
    ------
    NotExportable
        If the family's network cannot be exported; nothing is written.
    Mismatch
        If onnxruntime answers other than the bundle; nothing is written.
    ConfigError
        If onnx or onnxruntime is missing, or the card has no mock and no dataset was given.
    """
    _require_onnx()
    bundle = located(bundle)
    made = Predictor.without_network(bundle)
    columns, tried = _columns(made, str(bundle), data, rows)
    family = made.family
    model = family.plain(trained_model(bundle, family))
    export = family.export(model, made.calibration, made.tensors)
    inputs = family.transform(columns, training=False)
    expected = family.predict(model, inputs, made.calibration, made.tensors)
    graph = make_graph(export, inputs, about(export, family, made.content) | {"tried_on": tried})
    differences = verify(graph, export, inputs, expected)
    places.write_bytes(out, graph)
    return OnnxExport(
        out, made.version, [port.name for port in export.inputs],
        [port.name for port in export.outputs], len(next(iter(inputs.values()))), differences,
    )  # fmt: skip


def about(export: Export, family: Family, content: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of the file: text, or JSON where it has parts."""
    described = {column.name for column in family.output_columns()}
    parts = {
        "inputs": [asdict(port) for port in export.inputs],
        "outputs": [asdict(port) for port in export.outputs],
        "classes": list(export.classes),
        "not_given": sorted(described - export.given),
        "calibration": content["calibration"],
        "settings": family.transform_settings(),
        "data": content["data"],
    }
    return {
        "format": _FORMAT,
        "family": family.name,
        "recipe": family.recipe.name,
        "model_version": str(content.get("version", "")),
        "bundle_digest": bundle_digest(dict(content)),
        "skyray_version": skyray.__version__,
        **{name: json.dumps(value, sort_keys=True) for name, value in parts.items()},
    }


def make_graph(export: Export, inputs: Columns, metadata: Mapping[str, str]) -> bytes:
    """Return the file: the network traced on rows of `Family.transform`, any number of rows.

    torch's tracing exporter: the other one takes ten times as long for many small networks, and two
    packages more.

    Raises
    ------
    NotExportable
        If a layer has no counterpart in ONNX, or the weights are too many for one file.
    """
    import onnx

    state = export.network.state_dict().values()
    if (size := sum(v.numel() * v.element_size() for v in state)) > MOST_BYTES:
        raise NotExportable(
            f"weights: expected at most {MOST_BYTES:,} bytes, found {size:,}: more than one file "
            "of ONNX holds"
        )
    torch.onnx.register_custom_op_symbolic(
        "aten::_upsample_bilinear2d_aa", _resize_antialiased, OPSET
    )
    names = [port.name for port in export.inputs], [port.name for port in export.outputs]
    written = io.BytesIO()
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of tracing: `verify` tries other numbers of rows
            torch.onnx.export(
                export.network, tuple(torch.tensor(values) for values in export.feed(inputs)),
                written, input_names=names[0], output_names=names[1], opset_version=OPSET,
                dynamic_axes={name: {0: "batch"} for name in (*names[0], *names[1])}, dynamo=False,
            )  # fmt: skip
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise NotExportable(f"the network cannot be written as ONNX: {reason}") from error
    model = onnx.load_from_string(written.getvalue())
    model.producer_name, model.producer_version = "skyray", skyray.__version__
    onnx.helper.set_model_props(model, dict(metadata))
    onnx.checker.check_model(model)
    return model.SerializeToString()


@parse_args("v", "is", "b", "v", "v")
def _resize_antialiased(g, image, size, align_corners, *scales):
    """Return ONNX's own antialiased resizing; the exporter has no translation of torch's."""
    none = g.op("Constant", value_t=torch.tensor([], dtype=torch.float32))
    return g.op(
        "Resize", image, none, none, g.op("Constant", value_t=torch.tensor(size)),
        coordinate_transformation_mode_s="align_corners" if align_corners else "half_pixel",
        mode_s="linear", antialias_i=1, axes_i=[2, 3],
    )  # fmt: skip


def verify(graph: bytes, export: Export, inputs: Columns, expected: Columns) -> dict[str, float]:
    """Return the largest difference of each output, over all rows at once, few and one alone.

    Raises
    ------
    Mismatch
        If it is larger than the output's tolerance.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [port.name for port in export.outputs]
    total = len(next(iter(inputs.values())))
    largest = dict.fromkeys(names, 0.0)
    for rows in (slice(0, total), slice(0, 1), slice(total // 2, total // 2 + 3)):
        part = {name: values[rows] for name, values in inputs.items()}
        feed = dict(zip((port.name for port in export.inputs), export.feed(part), strict=True))
        answers = session.run(names, feed)
        found = export.compare(answers, {name: values[rows] for name, values in expected.items()})
        largest = {name: max(largest[name], found[name]) for name in names}
    return largest


def _columns(made: Predictor, bundle: str, data: str | None, rows: int) -> tuple[Columns, str]:
    """Return the objects a graph is tried on, and what they are."""
    if data is not None:
        dataset = Dataset.open(data)
        check_layout(bundle, dataset)
        if not dataset.count():
            raise ConfigError(f"{data}: expected objects to try the network on, found none")
        chosen = np.linspace(0, dataset.count() - 1, min(rows, dataset.count())).astype(np.int64)
        table = dataset.take(np.unique(chosen), made.family.columns(training=False))
        tried = f"{table.num_rows} objects of the dataset of fingerprint "
        return table_to_columns(table), tried + dataset.manifest.fingerprint
    name = made.info.card
    try:
        card, size = load_card(name), made.info.image_size
        survey = make_simulator(card.override([f"image_size={size}"]) if size else card, seed=0)
    except ConfigError as error:
        raise ConfigError(f"{error}; name a dataset to try the network on (--data)") from None
    classes = made.info.classes
    records = [survey.record(classes[i % len(classes)], i // len(classes)) for i in range(rows)]
    return columns_of(records, made.info), f"{rows} mock objects of card {name}"


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export onnx: needs {error.name}: pip install 'skyray[onnx]'") from None
