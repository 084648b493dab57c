"""Bundles as ONNX: every family, what the file says of itself, and that a wrong one is not kept."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from skyray.bundles.bundle import Predictor, write_bundle
from skyray.bundles.onnx_export import export_onnx, make_graph
from skyray.families.base import NotExportable, load_family, load_recipe
from skyray.families.exports import Export, Mismatch, Port
from skyray.training.contract.case import Case

ROWS = 12
MADE_OF = ("domain_distance", "p_target_survey")  # of features by matrices, which magnify rounding
EXAMPLES = [
    ("redshift", 0), ("outliers", 0), ("alerts", 0), ("alerts", 2), ("morphology", 1),
    ("lensing", 0), ("lensing", -1),
]  # fmt: skip


@pytest.fixture(scope="module", params=EXAMPLES, ids=lambda example: f"{example[0]}{example[1]}")
def exported(request, tmp_path_factory):
    """A calibrated bundle, its export, and rows it was not calibrated on."""
    name, number = request.param
    example = load_family(name).examples()[number]
    case = Case(load_family(name), replace(example, rows=4 * ROWS))
    family = case.family()
    torch.manual_seed(0)
    model = family.build_model().eval()
    for parameter in model.parameters():  # networks that start at zero answer everything alike
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    served = family.optimise_for_inference(model)
    calibration, tensors = family.calibrate(served, case.inputs(True, range(0, 4 * ROWS, 2)))
    folder = tmp_path_factory.mktemp(name)
    bundle, file = str(folder / "bundle"), str(folder / "model.onnx")
    write_bundle(bundle, family, model, calibration, tensors, {"version": "1-2-3"})
    done = export_onnx(bundle, file, rows=6)
    return bundle, file, done, case.columns(False, range(1, 2 * ROWS, 2))


def answers(file: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]
    feed = {entry.name: inputs[entry.name] for entry in session.get_inputs()}
    return dict(zip(names, session.run(names, feed), strict=True))


def test_the_file_answers_as_the_bundle(exported):
    bundle, file, done, columns = exported
    made = Predictor.from_bundle(bundle, device="cpu")
    inputs = made.family.transform(columns, training=False)
    expected = made.family.predict(made.model, inputs, made.calibration, made.tensors)
    found = answers(file, inputs)
    assert done.rows == 6
    ports = {port["name"]: port["tolerance"] for port in json.loads(metadata(file)["outputs"])}
    assert all(done.differences[name] <= ports[name] for name in ports)
    assert all(size == 1e-5 for name, size in ports.items() if not name.startswith(MADE_OF))
    if "class" in found:
        classes = json.loads(metadata(file)["classes"])
        assert [classes[i] for i in found["class"]] == expected["label"].tolist()
    if "probabilities" in found:
        shown = np.stack([expected[f"p_{name}"] for name in classes], axis=1)
        np.testing.assert_allclose(found["probabilities"], shown, atol=1e-5)
    for name in set(found) & set(expected) - {"domain_distance"}:
        limit = (
            10 * ports[name] if name.startswith(MADE_OF) else 1e-5
        )  # the predictor's network is rounded otherwise, too
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=limit)
    nothing = answers(file, {name: values[:0] for name, values in inputs.items()})
    assert {len(values) for values in nothing.values()} == {0}


def test_a_bundle_is_exported_by_its_name_in_the_registry(exported, tmp_path, monkeypatch):
    """Version 1, which was fetched before the registry went away."""
    bundle, file, _, _ = exported
    if Predictor.without_network(bundle).family.name != "redshift":
        return
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := "http://127.0.0.1:9")
    kept = hashlib.sha256(uri.encode()).hexdigest()[:16]
    shutil.copytree(bundle, tmp_path / "models" / kept / "m" / "1-1700000000000")
    named = str(tmp_path / "named.onnx")
    assert export_onnx("models:/m/1", named, rows=6).version == "1-2-3"
    assert metadata(named) == metadata(file)


def metadata(file: str) -> dict[str, str]:
    return onnxruntime.InferenceSession(file).get_modelmeta().custom_metadata_map


def test_the_file_says_what_it_is(exported):
    bundle, file, done, _ = exported
    made, told = Predictor.without_network(bundle), metadata(file)
    assert told["model_version"] == made.version == done.version == "1-2-3"
    assert json.loads(told["calibration"]) == made.calibration
    assert json.loads(told["settings"]) == json.loads(json.dumps(made.family.transform_settings()))
    assert "mock objects" in told["tried_on"]
    model = onnx.load(file)
    assert (model.producer_name, model.opset_import[0].version) == ("skyray", 18)
    for kind, entries in (("inputs", model.graph.input), ("outputs", model.graph.output)):
        ports = json.loads(told[kind])
        assert [port["name"] for port in ports] == [entry.name for entry in entries]
        for port, entry in zip(ports, entries, strict=True):
            kept = entry.type.tensor_type
            assert onnx.helper.tensor_dtype_to_np_dtype(kept.elem_type) == np.dtype(port["dtype"])
            assert kept.shape.dim[0].dim_param == "batch"
            assert len(kept.shape.dim) == 1 + len(port["shape"])
    described = {column.name for column in made.family.output_columns()}
    given = {c for p in json.loads(told["outputs"]) for c in p["columns"] or [p["name"]]}
    assert set(json.loads(told["not_given"])) == described - given


_ALONE = """
import json, sys
sys.path.insert(0, {site!r})
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({file!r})
feed = dict(np.load({rows!r}))
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
print(json.dumps([classes[i] for i in session.run(["class"], feed)[0]]))
import importlib.util
assert importlib.util.find_spec("skyray") is None and "torch" not in sys.modules
"""


def test_without_skyray_the_classes_are_the_same(exported, tmp_path):
    bundle, file, done, columns = exported
    if "class" not in done.outputs:
        return
    made = Predictor.from_bundle(bundle, device="cpu")
    inputs = made.inputs(columns)
    expected = made.family.predict(
        made.model, made.family.transform(columns, training=False), made.calibration, made.tensors
    )
    np.savez(tmp_path / "rows.npz", **{name: inputs[name] for name in done.inputs})
    places = [str(Path(module.__file__).parents[1]) for module in (np, onnxruntime)]
    code = _ALONE.format(site=places[0], file=file, rows=str(tmp_path / "rows.npz"))
    code = code.replace("import numpy", f"sys.path.append({places[1]!r})\nimport numpy", 1)
    ran = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == expected["label"].tolist()


def test_a_file_that_answers_otherwise_is_not_kept(exported, tmp_path, monkeypatch):
    bundle, *_ = exported
    family = type(Predictor.without_network(bundle).family)
    honest = family.export

    class Shifted(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, *inputs):
            return tuple(v + 1e-2 if v.is_floating_point() else v for v in self.network(*inputs))

    def export(self, *args):
        made = honest(self, *args)
        return replace(made, network=Shifted(made.network))

    monkeypatch.setattr(family, "export", export)
    target = tmp_path / "model.onnx"
    target.write_bytes(b"the one before")
    with pytest.raises(Mismatch, match=r"expected .* within 1e-05, found"):
        export_onnx(bundle, str(target), rows=6)
    assert target.read_bytes() == b"the one before"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_layer_without_counterpart_is_named():
    class Gamma(nn.Module):
        def forward(self, x):
            return (torch.special.gammaincc(x, x),)

    port = Port("x", "float32", (2,), "", "numbers")
    with pytest.raises(NotExportable, match="igammac"):
        make_graph(
            Export(Gamma(), (port,), (replace(port, name="y"),)),
            {"x": np.ones((3, 2), np.float32)}, {},
        )  # fmt: skip


def test_templates_alone_have_no_network():
    recipe = load_recipe("redshift/templates")
    family_type = load_family("redshift")
    info = Case(family_type, replace(family_type.examples()[0], rows=3)).info
    with pytest.raises(NotExportable, match="fits templates; there is no network"):
        family_type(recipe, info).export(nn.Module(), {}, {})
