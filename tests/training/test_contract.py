"""check_family: a stranger's family passes, and each way to break a contract is found by name."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.training.stranger import ColourFamily, ColourLoss, ColourRecipe

from skyray.cards import load_card
from skyray.families.base import Choice, Example, Objective, OutputColumn, Range
from skyray.simulate.base import make_simulator
from skyray.training.contract import BrokenContract, check_family


def broken(**changes) -> type[ColourFamily]:
    """Return the stranger's family with some of its methods replaced, importable as its own."""
    made = type("BrokenFamily", (ColourFamily,), changes)
    made.__module__ = __name__
    globals()["BrokenFamily"] = made
    return made


def transform(self, columns, training):
    return ColourFamily.transform(self, columns, training)


def predict(self, *args):
    return ColourFamily.predict(self, *args)


def stages(change):
    """Return `stages` with its first stage changed."""
    return lambda self: [change(ColourFamily.stages(self)[0]), *ColourFamily.stages(self)[1:]]


def test_a_strangers_family_passes():
    check_family(ColourFamily)


def test_records_stand_in_for_a_card_without_a_mock():
    card = load_card("sdss_coarse")
    survey = make_simulator(card, 3)
    records = tuple(survey.record(label, i) for i in range(4) for label in card.classes)
    bare = card.model_copy(update={"mock": None})
    check_family(ColourFamily, [Example(ColourRecipe(name="tiny"), bare, records=records)])


def test_it_needs_no_ray():
    code = (
        "import sys; from tests.training.stranger import ColourFamily; "
        "from skyray.training.contract import check_family; check_family(ColourFamily); "
        "assert not {'ray', 'mlflow'} & set(sys.modules)"
    )
    paths = ":".join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


# transform ---------------------------------------------------------------------------------------
def _of_the_batch(self, columns, training):
    inputs = transform(self, columns, training)
    return inputs | {"x": inputs["x"] - inputs["x"].max(axis=0)}


def _by_position(self, columns, training):
    inputs = transform(self, columns, training)
    return inputs | {"x": inputs["x"] + np.arange(len(inputs["x"]), dtype=np.float32)[:, None]}


def _other_in_training(self, columns, training):
    inputs = transform(self, columns, training)
    return inputs | {"x": inputs["x"] * (1 + training)}


def _in_place(self, columns, training):
    columns["flux"] -= 1.0
    return transform(self, columns, training)


def _text(self, columns, training):
    inputs = transform(self, columns, training)
    return inputs | {"name": np.array(["a"] * len(inputs["x"]), dtype=object)}


def _refuses_nothing(self, columns, training):
    if not len(columns["flux"]):
        raise IndexError("no rows")
    return transform(self, columns, training)


def _drops_a_row(self, columns, training):
    return {name: values[1:] for name, values in transform(self, columns, training).items()}


# stages ------------------------------------------------------------------------------------------
class NanLoss(ColourLoss):
    def __call__(self, part, batch):
        loss, metrics = super().__call__(part, batch)
        return loss * float("nan"), metrics


class VectorLoss(ColourLoss):
    def __call__(self, part, batch):
        return part(batch["x"]).square().mean(1), {}


class DetachedLoss(ColourLoss):
    def __call__(self, part, batch):
        loss, metrics = super().__call__(part, batch)
        return loss.detach(), metrics


class NoisyLoss(ColourLoss):
    """Validation draws from a random state that no seed of the run reaches."""

    generator = np.random.default_rng()

    def __call__(self, part, batch):
        loss, metrics = super().__call__(part, batch)
        return loss * (1 + 0.1 * self.generator.random()), metrics


class Teacher(torch.nn.Sequential):
    """A model with weights that no bundle can keep."""

    def state_dict(self, **options):
        found = super().state_dict(**options)
        return {**found, "twin": found["0.weight"]} if not options else found


def _unseeded(self):
    model = ColourFamily.build_model(self)
    torch.nn.init.constant_(model[0].bias, float(np.random.default_rng().random()))
    return model


def _twin_weights(self):
    return Teacher(*ColourFamily.build_model(self))


# answers -----------------------------------------------------------------------------------------
def _without_probability(self, *args):
    output = predict(self, *args)
    return {name: output[name] for name in ("label", "distance")}


def _and_more(self, *args):
    return predict(self, *args) | {"more": np.zeros(len(args[1]["x"]))}


def _in_float64(self, *args):
    output = predict(self, *args)
    return output | {"probability": output["probability"].astype(np.float64)}


def _ranked_in_the_batch(self, *args):
    output = predict(self, *args)
    rank = output["probability"].argsort().argsort().astype(np.float32)
    return output | {"probability": rank}


def _one_row_too_many(self, *args):
    return {name: np.append(values, values[:1]) for name, values in predict(self, *args).items()}


def _numbers_as_keys(self, found):
    return {1: 0.5}, {}


def _array_in_json(self, found):
    return {"mean": found["x"].mean(0)}, {}


def _array_for_tensor(self, found):
    return {"temperature": 1.0}, {"mean": found["x"].mean(0)}


def _kept_aside(self, found):
    """Keep a part of the calibration in the family, where no bundle finds it."""
    self.factor = 2.0
    return ColourFamily.fit_calibration(self, found)


def _on_another_worker(self, found):
    """Need what `raw_outputs` has left in the family, which other processes do not have."""
    return {"rows": self.rows}, {}


def _centred_in_its_block(self, model, inputs):
    return {"x": inputs["x"] - inputs["x"].mean(0)}


def _with_what_was_kept(self, model, inputs, calibration, tensors):
    output = predict(self, model, inputs, calibration, tensors)
    return output | {"distance": output["distance"] * np.float32(getattr(self, "factor", 1.0))}


CASES = {
    "columns: unknown": (
        "columns", "columns of a request", {"columns": lambda self, training: ["flux", "colour"]},
    ),
    "columns: label in serving": (
        "columns", "columns of a request", {"columns": lambda self, training: ["flux", "label"]},
    ),
    "truth": ("columns", "columns of a dataset", {"truth_columns": lambda self: ["true_class"]}),
    "batch": ("transform", "row 0 in a batch of one", {"transform": _of_the_batch}),
    "position": ("transform", "rows in another order", {"transform": _by_position}),
    "training": ("transform", "training and serving alike", {"transform": _other_in_training}),
    "in place": ("transform", "no error", {"transform": _in_place}),
    "text": ("transform", "name: numbers or booleans", {"transform": _text}),
    "no rows": ("transform", "no error", {"transform": _refuses_nothing}),
    "fewer rows": ("transform", "x: 18 rows", {"transform": _drops_a_row}),
    "settings too few": (
        "transform_settings", "with another bins", {"transform_settings": lambda self: {}},
    ),
    "settings no JSON": (
        "transform_settings", "no error", {"transform_settings": lambda self: {"a": np.zeros(2)}},
    ),
    "space: unknown key": (
        "search_space", "no error",
        {"search_space": classmethod(lambda cls, recipe: {"width": Choice((1, 2))})},
    ),
    "space: value refused": (
        "search_space", "no error",
        {"search_space": classmethod(lambda cls, recipe: {"hidden": Choice((0, 2))})},
    ),
    "space: empty range": (
        "search_space", "train.optimizer.lr: low < high",
        {"search_space": classmethod(lambda cls, recipe: {"train.optimizer.lr": Range(1, 1)})},
    ),
    "start": ("build_model", "the same weights under the same seed", {"build_model": _unseeded}),
    "same name": (
        "stages", "unique names", {"stages": stages(lambda stage: replace(stage, name="last"))},
    ),
    "rows": (
        "stage classifier: rows", "bool",
        {"stages": stages(lambda s: replace(s, rows=lambda c: np.flatnonzero(c["label_index"])))},
    ),
    "rows of pixels": (
        "stage classifier: rows", "columns of one value a row",
        {"stages": stages(lambda s: replace(s, rows=lambda c: c["x"].mean(1) > 0))},
    ),
    "side by side": (
        "stages: after", "parts that share nothing",
        {"stages": lambda self: [replace(s, after=()) for s in ColourFamily.stages(self)]},
    ),
    "part": (
        "stage classifier: part", "a module of the model",
        {"stages": stages(lambda s: replace(s, part=lambda model: torch.nn.Linear(6, 3)))},
    ),
    "trains": (
        "stage classifier: trains", "one parameter at least",
        {"stages": stages(lambda stage: replace(stage, trains=lambda name: False))},
    ),
    "lr_factor": (
        "stage classifier: loss", "lr_factor: positive",
        {"stages": stages(lambda stage: replace(stage, lr_factor=lambda name: -1.0))},
    ),
    "prepare": (
        "stage classifier: prepare", "0.bias: finite",
        {"stages": stages(lambda stage: replace(
            stage, prepare=lambda part, rows: torch.nn.init.constant_(part[0].bias, np.nan)
        ))},
    ),
    "at_epoch": (
        "stage classifier: at_epoch", "no error",
        {"stages": stages(lambda stage: replace(stage, at_epoch=lambda epoch: 1 / (epoch - 1)))},
    ),
    "nan": (
        "stage classifier: loss", "loss: finite",
        {"stages": stages(lambda stage: replace(stage, loss=NanLoss()))},
    ),
    "vector": (
        "stage classifier: loss", "loss: a scalar tensor",
        {"stages": stages(lambda stage: replace(stage, loss=VectorLoss()))},
    ),
    "no gradient": (
        "stage classifier: loss", "a differentiable loss",
        {"stages": stages(lambda stage: replace(stage, loss=DetachedLoss()))},
    ),
    "noisy": (
        "stage classifier: loss", "the same under the same seed",
        {"stages": stages(lambda stage: replace(stage, loss=NoisyLoss()))},
    ),
    "monitor": (
        "stage classifier: loss", "monitor: one of",
        {"stages": stages(lambda stage: replace(stage, monitor="auc"))},
    ),
    "features": (
        "stage last: features", "the same whatever else the batch holds",
        {"features": lambda self, model, batch: {
            "x": model[1](model[0](batch["x"])).softmax(0), "label_index": batch["label_index"]
        }},
    ),
    "objective: stage": (
        "objective", "one of the stages",
        {"objective": lambda self: Objective("first", "accuracy", "max")},
    ),
    "objective: metric": (
        "objective", "a metric of stage last",
        {"objective": lambda self: Objective("last", "auc", "max")},
    ),
    "weights": ("weights", "no error", {"build_model": _twin_weights}),
    "kept aside": (
        "weights", "predictions after saving and loading",
        {"fit_calibration": _kept_aside, "predict": _with_what_was_kept},
    ),
    "block": ("raw_outputs", "blocks of 1 and more: x", {"raw_outputs": _centred_in_its_block}),
    "some columns": (
        "raw_outputs", "arrays of the same rows",
        {"raw_outputs": lambda self, model, inputs: {"x": inputs["x"], "mean": np.zeros(3)}},
    ),
    "other process": (
        "fit_calibration", "no error",
        {"raw_outputs": lambda self, model, inputs: setattr(self, "rows", 1) or inputs,
         "fit_calibration": _on_another_worker},
    ),
    "keys": ("fit_calibration", "values that JSON keeps", {"fit_calibration": _numbers_as_keys}),
    "values": ("fit_calibration", "no error", {"fit_calibration": _array_in_json}),
    "tensors": ("fit_calibration", "mean: a tensor", {"fit_calibration": _array_for_tensor}),
    "missing column": ("predict", "the columns", {"predict": _without_probability}),
    "undescribed column": ("predict", "no column but those described", {"predict": _and_more}),
    "dtype": ("predict", "probability: float32", {"predict": _in_float64}),
    "rank": ("predict", "row 0 in a batch of one", {"predict": _ranked_in_the_batch}),
    "predicted rows": ("predict", "label: 9 rows", {"predict": _one_row_too_many}),
    "text column": (
        "predict", "probability: text",
        {"output_columns": lambda self: [OutputColumn(name, "str", "", "")
                                         for name in ("label", "probability", "distance")]},
    ),
    "infer": (
        "infer", "an array of 9 rows",
        {"infer": lambda self, model, *given: {"model": np.zeros(3)},
         "finish": lambda self, found, *given: found, "predict": predict},
    ),
    "finish": (
        "finish", "as predict",
        {"infer": lambda self, model, inputs, *given: inputs,
         "finish": lambda self, found, *given: {"label": found["x"]}, "predict": predict},
    ),
    "scoring table": (
        "scoring_table", "row [0] alone",
        {"scoring_table": lambda self, table: table
         | {"probability": table["probability"] - table["probability"].mean()}},
    ),
    "scores": (
        "evaluate", "no error", {"evaluate": lambda self, table, calibration: {"a": np.ones(2)}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_each_broken_contract_is_found_by_its_name(name):
    contract, expected, changes = CASES[name]
    with pytest.raises(BrokenContract) as found:
        check_family(broken(**changes))
    assert found.value.contract == contract, found.value
    assert expected in found.value.expected, found.value
    assert found.value.family == "colour"


def test_a_family_that_does_not_pickle():
    class Local(ColourFamily):
        pass

    with pytest.raises(BrokenContract, match="family 'colour': pickle"):
        check_family(Local)


def test_a_family_without_examples_is_no_family_checked():
    with pytest.raises(BrokenContract, match="examples: expected one Example at least; found none"):
        check_family(broken(examples=classmethod(lambda cls: [])))


def test_the_refusal_pickles():
    error = pickle.loads(pickle.dumps(BrokenContract("colour", "predict", "3 rows", "2")))
    assert str(error) == "family 'colour': predict: expected 3 rows; found 2"
    assert isinstance(error, AssertionError)
