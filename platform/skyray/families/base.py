"""What a family is: a model, the stages that train it, how it predicts and how it is judged.

The engine works with these types only and knows no particular family. A family lives in
``skyray/families/NAME/family.py`` and is found there by its name.

``Columns`` are batches as dicts of numpy arrays (first axis = rows); ``Tensors`` the same in torch.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.families.data_info import DataInfo
from skyray.families.exports import Export, NotExportable
from skyray.families.exports import Port as Port
from skyray.families.exports import tolerance_behind as tolerance_behind
from skyray.families.recipe import Mode as Mode
from skyray.families.recipe import OptimizerConfig as OptimizerConfig
from skyray.families.recipe import Recipe, TrainConfig
from skyray.records import Record

Columns = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Stage:
    """One phase of training.

    Attributes
    ----------
    name : str
        Unique in the run; names its metrics and checkpoints.
    part : callable
        model → the sub-module this stage trains and saves; the rest stays frozen.
    loss : callable
        (part, batch) → (scalar loss, dict of scalar metrics). Called under autocast.
    after : tuple of str, optional
        Stages that this one builds on: they are finished, and in the model, before it begins, and
        no others are. Those that need nothing from one another run side by side. Default: all
        before it.
    rows : callable, optional
        columns → boolean array: the rows of a split this stage uses. Default: all. Each column is
        read from the prepared table when it is asked for: ask for labels, not for pixels.
    train : TrainConfig
        Batch size, epochs, optimiser, stopping.
    monitor, better : str
        Validation metric that chooses the best epoch, and whether ``min`` or ``max`` is better.
    keep : str
        ``best`` epoch by `monitor`, or the ``last`` one (a loss that changes with the epoch).
    arrange : callable, optional
        batch on the host → tensors to add to it, before it goes to the device: what the loss would
        else have to ask the device for and wait, such as the places of the rows of each kind.
    features : callable, optional
        (model, batch) → the tensors this stage trains on, made by frozen parts of the model. They
        are computed once, with the model in evaluation mode, and kept in a table of their own.
    prepare : callable, optional
        (part, training rows) → None, before the first epoch: for buffers that depend on the data,
        such as a standardisation. The rows are a mapping that reads a column when it is asked for:
        all rows of the stage, or 100,000 drawn at random where there are more.
    at_epoch : callable, optional
        epoch → None, before each epoch: for losses with a schedule of their own.
    trains : callable, optional
        name of a parameter of the part → whether it learns. Default: all do.
    lr_factor : callable, optional
        name of a parameter of the part → factor of the learning rate. Default: 1.
    """

    name: str
    part: Callable[[nn.Module], nn.Module]
    loss: Callable[[nn.Module, Tensors], tuple[torch.Tensor, dict[str, torch.Tensor]]]
    train: TrainConfig
    after: tuple[str, ...] | None = None
    rows: Callable[[Mapping[str, np.ndarray]], np.ndarray] | None = None
    monitor: str = "loss"
    better: Literal["min", "max"] = "min"
    keep: Literal["best", "last"] = "best"
    arrange: Callable[[Tensors], Tensors] | None = None
    features: Callable[[nn.Module, Tensors], Tensors] | None = None
    prepare: Callable[[nn.Module, Mapping[str, torch.Tensor]], None] | None = None
    at_epoch: Callable[[int], None] | None = None
    trains: Callable[[str], bool] | None = None
    lr_factor: Callable[[str], float] | None = None


@dataclass(frozen=True)
class Choice:
    """A hyper-parameter that takes one of several values."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Range:
    """A hyper-parameter between two limits; `log` for a uniform logarithm, `step` for a lattice."""

    low: float
    high: float
    log: bool = False
    step: float | None = None


@dataclass(frozen=True)
class Objective:
    """What a sweep improves: a metric of a stage's validation."""

    stage: str
    metric: str
    better: Literal["min", "max"]


@dataclass(frozen=True)
class OutputColumn:
    """A column of the catalogue: its name, Arrow-ready numpy dtype, unit and meaning."""

    name: str
    dtype: str
    unit: str
    description: str


@dataclass(frozen=True)
class Example:
    """A recipe that runs in seconds, and the card it is tried on (`training.contract`).

    Attributes
    ----------
    recipe : Recipe
    card : Card
        Its mock gives the objects, in turn of each class, so many as `rows` says.
    records : tuple of Record
        Objects to take instead, for a card without a mock.
    """

    recipe: Recipe
    card: Card
    rows: int = 36
    records: tuple[Record, ...] = ()


class Family(ABC):
    """A scientific system bound to a recipe and to what the training data were."""

    name: ClassVar[str]
    recipe_type: ClassVar[type[Recipe]]

    def __init__(self, recipe: Recipe, data: DataInfo):
        self.recipe = recipe
        self.data = data

    # training ------------------------------------------------------------------------------
    @abstractmethod
    def build_model(self) -> nn.Module:
        """Return the untrained model; initialisation follows torch's global random state."""

    def initialise(self, model: nn.Module) -> None:  # noqa: B027 (most families load nothing)
        """Load what training starts from, such as pre-trained weights; never needed afterwards."""

    @abstractmethod
    def stages(self) -> list[Stage]:
        """Return the stages in their order."""

    @abstractmethod
    def columns(self, training: bool) -> list[str]:
        """Return the dataset columns `transform` needs."""

    @abstractmethod
    def transform(self, columns: Columns, training: bool) -> Columns:
        """Turn record columns into network input; the same code for training and serving.

        With `training`, targets are added. Must not depend on other rows of the batch.
        """

    def answer_inputs(self, columns: Columns) -> Columns:
        """Return what `infer` needs beside the rows of `transform`, [B, ...] each.

        Made when a bundle answers (predict, serve, evaluate) and never kept in prepared tables:
        what training does not read need not be stored. Names differ from those of `transform`.
        """
        return {}

    def transform_settings(self) -> dict[str, Any]:
        """Return all that ``transform(training=True)`` reads of recipe and data, as JSON types.

        Families of one name and equal settings turn equal columns into equal rows, bit by bit, so
        that what one of them has transformed serves the others. Default: the whole recipe but its
        name, seed and ``train``, and the data but its counts and its identity; families narrow it
        to what their transform reads, with each switch by its resolved value.
        """
        recipe, data = self.recipe.snapshot(), self.data.to_dict()
        for name in ("name", "seed", "train"):
            del recipe[name]
        for name in ("card", "counts", "fingerprint", "version"):
            data.pop(name, None)
        return {"recipe": recipe, "data": data}

    # after training ------------------------------------------------------------------------
    @abstractmethod
    def raw_outputs(self, model: nn.Module, inputs: Columns) -> Columns:
        """Return all that `fit_calibration` needs of rows [B ≥ 1, ...] of the validation split.

        What the networks say, and the truth beside it: the share of calibration that wants their
        device. Made in blocks on many workers, which are joined in the order of the rows: must not
        depend on other rows of the block. Rows that tell nothing, such as those without a label,
        are left out; columns, dtypes and shapes of a row are the same for every block.
        """

    @abstractmethod
    def fit_calibration(self, found: Columns) -> tuple[dict[str, Any], Tensors]:
        """Fit what turns raw outputs into honest answers, once for all rows of `raw_outputs`.

        Returns JSON values and tensors that the bundle keeps and `predict` receives.
        """

    def calibrate(self, model: nn.Module, inputs: Columns) -> tuple[dict[str, Any], Tensors]:
        """Return the calibration of rows that are all here: one step after the other."""
        return self.fit_calibration(self.raw_outputs(model, inputs))

    @abstractmethod
    def predict(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        """Return the output columns for transformed inputs, in the order of the rows."""

    def infer(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        """Return what `finish` needs: the share of `predict` that wants the network's device.

        A family whose scores take long on a processor overrides both, and `predict` is the one
        after the other; batch jobs run them on different workers.
        """
        return self.predict(model, inputs, calibration, tensors)

    def finish(self, found: Columns, calibration: dict[str, Any], tensors: Tensors) -> Columns:
        """Return the output columns from what `infer` gave, row by row, without the network."""
        return found

    def scoring_table(self, table: Columns) -> Columns:
        """Return what `evaluate` and `figures` need of predictions joined with the truth.

        Row by row, on the workers: what scores ask of a text or array becomes a column of its own.
        """
        return table

    @abstractmethod
    def output_columns(self) -> list[OutputColumn]:
        """Describe the columns `predict` returns."""

    @abstractmethod
    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        """Return metrics (JSON) of a table of predictions joined with the truth columns.

        The table is what `scoring_table` left, without names of objects. Arrays a row come for a
        random part of very large datasets only: scores that need them are of that part.

        Of what training knew (`calibration`) only limits may be used, such as a validation error.
        """

    @abstractmethod
    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        """Write the family's figures and return their paths; `table` may be a random part."""

    def detail_columns(self) -> list[str]:
        """Return the outputs of `predict` that no catalogue holds: arrays [B, ...] on request."""
        return []

    def array_columns(self) -> list[OutputColumn]:
        """Describe those of `detail_columns` that a table beside the catalogue can hold."""
        return []

    def truth_columns(self) -> list[str]:
        """Return the dataset columns that `evaluate` compares with."""
        return []

    @classmethod
    def search_space(cls, recipe: Recipe) -> dict[str, Choice | Range]:
        """Return the hyper-parameters a sweep varies, by recipe key (``train.batch_size``)."""
        return {}

    @classmethod
    def examples(cls) -> list[Example]:
        """Return the small recipes on which the family's contracts are checked."""
        return []

    def objective(self) -> Objective:
        """Return what a sweep improves; default: what the last stage chooses its epoch by."""
        stage = self.stages()[-1]
        return Objective(stage.name, stage.monitor, stage.better)

    def optimise_for_inference(self, model: nn.Module) -> nn.Module:
        """Return the model in evaluation form; families may fold or re-order layers here."""
        return model.eval()

    def plain(self, model: nn.Module) -> nn.Module:
        """Return what `predict` takes, in torch's own layers and float32; `export` is given it."""
        return model.eval()

    def export(self, model: nn.Module, calibration: dict[str, Any], tensors: Tensors) -> Export:
        """Return the graph that answers as `predict` does for the rows of `transform` alone.

        Raises
        ------
        NotExportable
            With the reason, where there is none; so is the default.
        """
        raise NotExportable(f"family {self.name}: says of no network how it is exported")


def load_family(name: str) -> type[Family]:
    """Return the family class of a name.

    Raises
    ------
    ConfigError
        If ``skyray.families.NAME.family`` does not exist.
    """
    if name not in known_families():
        raise ConfigError(f"family {name!r}: unknown; known: {known_families()}")
    return importlib.import_module(f"skyray.families.{name}.family").FAMILY


def known_families() -> list[str]:
    """Return the names of the installed families."""
    import skyray.families

    return sorted(m.name for m in pkgutil.iter_modules(skyray.families.__path__) if m.ispkg)


def load_recipe(name: str) -> Recipe:
    """Return a recipe by ``family/name`` (``redshift/sdss_dr16``).

    Raises
    ------
    ConfigError
        If the family or the recipe is unknown; the message lists what is known.
    """
    family, _, recipe = name.partition("/")
    if family not in known_families():
        raise ConfigError(f"recipe {name!r}: expected FAMILY/NAME, families: {known_families()}")
    recipes = importlib.import_module(f"skyray.families.{family}.recipes").RECIPES
    if recipe not in recipes:
        raise ConfigError(f"recipe {name!r}: unknown; known of {family}: {sorted(recipes)}")
    return recipes[recipe]()
