"""GaSNet-II as a family: stages, transform, calibrated predictions, scores and figures.

Beside the networks templates are fitted (`template_fit`), and one rule makes an answer of both
(`choice`). A recipe without networks answers with templates alone and needs no training.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skyray.analysis.calibration import fit_sigma_scale, fit_temperature
from skyray.analysis.domain import DomainGate
from skyray.config import ConfigError
from skyray.families.base import (
    Columns,
    DataInfo,
    Example,
    Export,
    Family,
    Objective,
    OutputColumn,
    Stage,
    Tensors,
)
from skyray.families.redshift import bundled_templates, choice, density, metrics
from skyray.families.redshift.choice import NetworkAnswer
from skyray.families.redshift.export import MIN_COVERAGE, exported
from skyray.families.redshift.networks import (
    ClassifierLoss,
    GasNetPipeline,
    RedshiftLoss,
    classify,
    decode_redshift,
    forward,
    softmax,
)
from skyray.families.redshift.recipes import RedshiftRecipe, examples, search_space
from skyray.families.redshift.template_fit import TemplateFit
from skyray.models.template_bases import LOG_STEP
from skyray.simulate.template_bases import built_in_bases
from skyray.transforms.log_rebin import LogRebin
from skyray.transforms.spectra import LinearResampler, inpaint, unit_rms

STAR = "STAR"
_SURVEY = {"class": "spectype"} | {n: n for n in ("redshift", "redshift_err", "zwarning")}


class RedshiftFamily(Family):
    """Classes and redshifts of 1-D spectra (GaSNet-II)."""

    name = "redshift"
    recipe_type = RedshiftRecipe
    recipe: RedshiftRecipe

    def __init__(self, recipe: RedshiftRecipe, data: DataInfo):
        if data.record != "spectrum" or data.grid is None:
            raise ConfigError(f"redshift: expected a dataset of spectra, found {data.record!r}")
        super().__init__(recipe, data)
        source, target = data.grid.wavelength(), recipe.input.grid().wavelength()
        if not recipe.networks:
            return
        if target[0] > source[-1] or target[-1] < source[0]:
            raise ConfigError(
                f"input: {target[0]:.0f}–{target[-1]:.0f} Å lies outside the dataset's "
                f"{source[0]:.0f}–{source[-1]:.0f} Å"
            )

    @cached_property
    def redshift_classes(self) -> list[str]:
        """Classes with redshift networks: those of the recipe, or all non-stars with data."""
        if not self.recipe.networks:
            return []
        if self.recipe.redshift_classes is not None:
            return list(self.recipe.redshift_classes)
        counts = self.data.counts.get("train", {})
        return [
            name
            for name in self.data.classes
            if self.data.coarse.get(name, name) != STAR and (not counts or counts.get(name, 0))
        ]

    @property
    def fits_templates(self) -> bool:
        """Whether templates are fitted beside the networks."""
        return self.recipe.switch("template_fit") == "corrected"

    @property
    def answer_classes(self) -> tuple[str, ...]:
        """Return the classes of labels and probabilities: templates alone know no subclasses."""
        return tuple(self.data.classes) if self.recipe.networks else choice.SPECTYPES

    @property
    def star_classes(self) -> list[int]:
        """Numbers of the classes that are at rest."""
        return [i for i, c in enumerate(self.data.classes) if self.data.coarse.get(c, c) == STAR]

    @cached_property
    def _rebin(self) -> LogRebin:
        return LogRebin(self.data.grid, LOG_STEP)

    def template_fit(self, tensors: Tensors, device: str = "cpu") -> TemplateFit:
        """Return the fit with a bundle's templates, made once for the same tensors."""
        kept = self.__dict__.get("_fit")
        if kept is None or kept[0] is not tensors or kept[1].device != device:
            grid, bases = self._rebin, bundled_templates.from_tensors(tensors)
            made = TemplateFit(bases, grid.first, grid.size, self.recipe.fit, device)
            kept = self.__dict__["_fit"] = (tensors, made)
        return kept[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fit"}

    @cached_property
    def _resampler(self) -> LinearResampler:
        return LinearResampler.between(self.data.grid, self.recipe.input.grid())

    @classmethod
    def examples(cls) -> list[Example]:
        return examples()

    @classmethod
    def search_space(cls, recipe: RedshiftRecipe) -> dict[str, Any]:
        return search_space()

    def objective(self) -> Objective:
        return Objective("classifier", "accuracy", "max")

    # training ------------------------------------------------------------------------------
    def build_model(self) -> nn.Module:
        if not self.recipe.networks:
            return nn.Module()
        return GasNetPipeline(self.recipe, len(self.data.classes), self.redshift_classes)

    def stages(self) -> list[Stage]:
        if not self.recipe.networks:
            raise ConfigError(f"recipe {self.recipe.name}: templates alone; nothing to train")
        stages = [
            Stage(
                name="classifier", part=lambda model: model.classifier,
                loss=ClassifierLoss(self.recipe), train=self.recipe.train,
                rows=lambda columns: columns["label_index"] >= 0, monitor="accuracy", better="max",
                after=(),
            )
        ]  # fmt: skip
        for name in self.redshift_classes:
            if self.recipe.switch("ensemble") == "as_published":
                stages.append(self._redshift_stage(name, None))
            else:
                members = range(self.recipe.members)
                stages += [self._redshift_stage(name, member) for member in members]
        return stages

    def _redshift_stage(self, name: str, member: int | None) -> Stage:
        index = self.data.classes.index(name)

        def part(model: GasNetPipeline) -> nn.Module:
            members = model.redshift[name]
            return members if member is None else members[member]

        def rows(columns: Columns) -> np.ndarray:
            return (columns["label_index"] == index) & np.isfinite(columns["redshift"])

        return Stage(
            name=f"redshift/{name}" + ("" if member is None else f"/{member}"),
            part=part,
            loss=RedshiftLoss(self.recipe),
            train=self.recipe.train_redshift,
            rows=rows,
            monitor="mae",
            better="min",
            after=(),
        )

    def columns(self, training: bool) -> list[str]:
        needed = ["flux", "ivar", "mask"]
        if self.fits_templates:
            needed += _SURVEY.values()
        return list(dict.fromkeys([*needed, "label", "redshift"] if training else needed))

    def answer_inputs(self, columns: Columns) -> Columns:
        """Return the spectrum on the fit's grid, float32 [B, L], and the survey's own answer."""
        if not self.fits_templates:
            return {}
        flux, ivar = self._rebin(columns["flux"], columns["ivar"], columns["mask"])
        survey = {f"survey_{name}": np.asarray(columns[c]) for name, c in _SURVEY.items()}
        return {"fit_flux": flux, "fit_ivar": ivar, **survey}

    def transform(self, columns: Columns, training: bool) -> Columns:
        """Fill bad pixels, resample to the network's grid, scale to unit rms (paper eq. 2).

        Returns ``x`` float32 [B, P] and ``coverage`` float32 [B], the measured share of x; with
        `training` also ``label_index`` int64 [B] (-1 = none) and ``redshift`` float64 [B].
        """
        bad = (np.asarray(columns["mask"]) != 0) | (np.asarray(columns["ivar"]) <= 0)
        if not self.recipe.networks:
            return {"coverage": (~bad).mean(axis=1, dtype=np.float32)}
        flux = np.asarray(columns["flux"], dtype=np.float32)
        if self.recipe.switch("masked_pixels") == "corrected":
            flux = inpaint(flux, bad)
        good = self._resampler((~bad).astype(np.float32))
        inputs = {
            "x": unit_rms(self._resampler(flux)),
            "coverage": good.mean(axis=1, dtype=np.float32),
        }
        if training:
            order = {name: index for index, name in enumerate(self.data.classes)}
            inputs["label_index"] = np.array(
                [order.get(label, -1) for label in columns["label"]], dtype=np.int64
            )
            inputs["redshift"] = np.asarray(columns["redshift"], dtype=np.float64)
        return inputs

    def transform_settings(self) -> dict[str, Any]:
        return {
            "input": self.recipe.input.snapshot(),
            "networks": self.recipe.networks,
            "masked_pixels": self.recipe.switch("masked_pixels"),
            "grid": self.data.grid.to_dict(),
            "classes": list(self.data.classes),
        }

    # after training ------------------------------------------------------------------------
    def optimise_for_inference(self, model: nn.Module) -> nn.Module:
        return model.folded() if self.recipe.networks else model.eval()

    def export(self, model: nn.Module, calibration: dict[str, Any], tensors: Tensors) -> Export:
        return exported(self, model, calibration, tensors)

    def template_tensors(self, bases=None) -> Tensors:
        """Return templates (default: the built-in ones) as a bundle keeps them."""
        if not self.fits_templates:
            return {}
        return bundled_templates.to_tensors(built_in_bases() if bases is None else bases)

    def calibrate(self, model: nn.Module, inputs: Columns) -> tuple[dict[str, Any], Tensors]:
        known = inputs["label_index"] >= 0
        label = inputs["label_index"][known]
        logits, features = classify(model.classifier, inputs["x"][known])
        corrected = self.recipe.switch("probabilities") == "corrected"
        values: dict[str, Any] = {
            "temperature": fit_temperature(logits, label) if corrected else 1.0,
            "star_redshift_err": self._star_spread(inputs),
            "sigma": {},
        }
        for name in self.redshift_classes:
            rows = (inputs["label_index"] == self.data.classes.index(name)) & np.isfinite(
                inputs["redshift"]
            )
            if not rows.any():
                continue
            mean, std = self._redshift(model, name, inputs["x"][rows])
            residual = mean - inputs["redshift"][rows]
            entry = {"scale": 1.0, "floor": 0.0, "mae": float(np.abs(residual).mean())}
            if self.recipe.switch("redshift_errors") == "corrected":
                entry["scale"], entry["floor"] = fit_sigma_scale(residual, std)
            values["sigma"][name] = entry
        gate = DomainGate.fit(features, label)
        tensors = {k: torch.as_tensor(v) for k, v in gate.to_tensors().items()}
        return values, tensors | self.template_tensors()

    def _star_spread(self, inputs: Columns) -> float:
        z = inputs["redshift"][np.isin(inputs["label_index"], self.star_classes)]
        z = z[np.isfinite(z)]
        return float(np.sqrt(np.mean(z**2))) if len(z) else 0.001

    def _redshift(self, model, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (ddof 0) over the members (eqs. 7, 8)."""
        z = np.stack(
            [decode_redshift(forward(member, x), self.recipe) for member in model.redshift[name]]
        )
        return z.mean(axis=0), z.std(axis=0)

    def predict(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        output: Columns = {"coverage": inputs["coverage"]}
        network = None
        if self.recipe.networks:
            own = self._answer_of_networks(model, inputs, calibration, tensors)
            network = NetworkAnswer(
                np.stack([own[f"p_{name}"] for name in self.data.classes], axis=1).astype(float),
                own["redshift"], own["redshift_err"], own["in_domain"],
            )  # fmt: skip
            output |= own
        if "fit_flux" in inputs:
            output |= self._with_templates(network, inputs, tensors, output["coverage"])
        elif self.fits_templates:
            output |= choice.nothing_fitted(output)
        if "label_index" in inputs and self.recipe.networks:  # the published routing by true class
            route = self._route(model, inputs["x"], inputs["label_index"], calibration)
            output["redshift_true_route"], output["redshift_err_true_route"] = route
        return output

    def _with_templates(self, network, inputs: Columns, tensors: Tensors, coverage) -> Columns:
        device = next((str(v.device) for v in tensors.values() if v.device.type == "cuda"), "cpu")
        fit = self.template_fit(tensors, device)
        groups = np.array([self.data.coarse.get(name, name) for name in self.data.classes])
        prior = choice.network_prior(network, groups) if network is not None else None
        fits = fit(inputs["fit_flux"], inputs["fit_ivar"], prior)
        survey = {name: inputs[f"survey_{name}"] for name in _SURVEY}
        return choice.combine(
            fits, coverage, network, survey, self.answer_classes, self.data.coarse, self.recipe.fit
        )

    def _answer_of_networks(self, model, inputs: Columns, calibration, tensors) -> Columns:
        """Return class, probabilities and redshift as the networks alone give them."""
        logits, features = classify(model.classifier, inputs["x"])
        probability = softmax(logits / calibration["temperature"])
        best = probability.argmax(axis=1)
        gate = DomainGate.from_tensors({k: v.cpu().numpy() for k, v in tensors.items()})
        distance = gate.score(features)
        redshift, error = self._route(model, inputs["x"], best, calibration)
        output: Columns = {
            "label": np.array(self.data.classes, dtype=object)[best],
            "probability": probability.max(axis=1).astype(np.float32),
            "redshift": redshift,
            "redshift_err": error,
            "in_domain": (distance <= gate.threshold) & (inputs["coverage"] >= MIN_COVERAGE),
            "domain_distance": distance.astype(np.float32),
            "coverage": inputs["coverage"],
        }
        for index, name in enumerate(self.data.classes):
            output[f"p_{name}"] = probability[:, index].astype(np.float32)
        return output

    def _route(self, model, x: np.ndarray, classes: np.ndarray, calibration: dict[str, Any]):
        """Return z and σ of each row from the ensemble of its class; stars are at rest."""
        redshift = np.full(len(x), np.nan)
        error = np.full(len(x), np.nan)
        for index, name in enumerate(self.data.classes):
            rows = classes == index
            if not rows.any():
                continue
            if index in self.star_classes:
                redshift[rows], error[rows] = 0.0, calibration["star_redshift_err"]
            elif name in model.redshift and name in calibration["sigma"]:
                sigma = calibration["sigma"][name]
                redshift[rows], std = self._redshift(model, name, x[rows])
                error[rows] = sigma["scale"] * np.hypot(std, sigma["floor"])
        return redshift, error

    def output_columns(self) -> list[OutputColumn]:
        described = [
            ("label", "str", "", "most probable class"),
            ("probability", "float32", "", "calibrated probability of that class"),
            ("redshift", "float64", "", "redshift; without template fit 0 for stars"),
            ("redshift_err", "float64", "", "1 sigma uncertainty of the redshift"),
            ("coverage", "float32", "", "measured share of the network's wavelength range"),
        ]
        if self.recipe.networks:
            described += [
                ("in_domain", "bool", "", "the spectrum resembles the training data"),
                ("domain_distance", "float32", "", "Mahalanobis distance to the nearest class"),
            ]
        described += [(f"p_{c}", "float32", "", f"probability of {c}") for c in self.answer_classes]
        more = choice.described() if self.fits_templates else []
        return [OutputColumn(*entry) for entry in described] + more

    def detail_columns(self) -> list[str]:
        return [column.name for column in self.array_columns()]

    def array_columns(self) -> list[OutputColumn]:
        return [density.COLUMN] if self.fits_templates else []

    def truth_columns(self) -> list[str]:
        return ["label", "spectype", "redshift", "redshift_err", "snr", "zwarning"]

    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        mae = {name: entry["mae"] for name, entry in calibration.get("sigma", {}).items()}
        return metrics.evaluate_table(
            self._judged(table), self.answer_classes, self.data.coarse, mae or None
        )

    def _judged(self, table: Columns) -> Columns:
        """Return the table; without networks with coarse labels and no columns of networks."""
        if self.recipe.networks:
            return table
        known = metrics.complete_coarse(self.data.classes, self.data.coarse)
        kept = {k: v for k, v in table.items() if k not in metrics.ROUTES["networks_alone"]}
        return {**kept, "label": metrics.coarse_truth(table, known)}

    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        from skyray.families.redshift import figures  # matplotlib is no business of workers

        return figures.write_figures(
            self._judged(table), metrics, folder, self.answer_classes, self.data.coarse
        )


FAMILY = RedshiftFamily
