"""The outlier search as a family: SPENDER autoencoder, flow on its latents, scores of strangeness.

One bundle models one population (galaxies, or stars). For each spectrum with a redshift it gives
the latent, −log p under the population's density, how well the reconstruction fits, and ranks
among objects of the population that training has not seen.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skyray.analysis.anomaly import IsolationScore, percentile
from skyray.config import ConfigError
from skyray.families.base import (
    Choice,
    Columns,
    DataInfo,
    Example,
    Export,
    Family,
    Objective,
    OutputColumn,
    Range,
    Stage,
    Tensors,
)
from skyray.families.outliers import metrics
from skyray.families.outliers.augment import augment
from skyray.families.outliers.export import exported
from skyray.families.outliers.metrics import RANKED, SCORES
from skyray.families.outliers.model_error import ModelError
from skyray.families.outliers.networks import (
    FidelityLoss,
    InvarianceLoss,
    OutlierModel,
    flow_loss,
)
from skyray.families.outliers.recipes import OutliersRecipe, examples
from skyray.records import Grid
from skyray.transforms.rest_frame import rebin, rebin_grid, rest_median
from skyray.transforms.sky_lines import SkyLines, load_sky_lines, sky_line_mask
from skyray.transforms.spectra import inpaint

PROBLEMS = (
    "",
    "no redshift",
    "no measured pixels in the normalisation window",
    "median flux in the normalisation window is not positive",
)
_CHUNK = 64
_WINDOW_ANGSTROM = 60.0
_ISOLATION_ROWS = 20_000


class OutliersFamily(Family):
    """Outlier search in spectra of one population (SPENDER + normalizing flow)."""

    name = "outliers"
    recipe_type = OutliersRecipe
    recipe: OutliersRecipe

    def __init__(self, recipe: OutliersRecipe, data: DataInfo):
        if data.record != "spectrum" or data.grid is None:
            raise ConfigError(f"outliers: expected a dataset of spectra, found {data.record!r}")
        super().__init__(recipe, data)
        rest, seen = recipe.network.rest().wavelength(), self.grid.wavelength()
        if rest[-1] < seen[0] or rest[0] > seen[-1]:
            raise ConfigError(
                f"network.rest_start/stop: {rest[0]:.0f}–{rest[-1]:.0f} Å do not meet the "
                f"dataset's {seen[0]:.0f}–{seen[-1]:.0f} Å"
            )

    @cached_property
    def grid(self) -> Grid:
        """Observed wavelengths after rebinning."""
        return rebin_grid(self.data.grid, self.recipe.input.rebin)

    @cached_property
    def sky_L(self) -> np.ndarray:
        """Pixels of the dataset's grid near bright sky lines, bool."""
        how = self.recipe.input
        if not how.sky_mask:
            return np.zeros(self.data.grid.size, dtype=bool)
        lines = load_sky_lines() if how.sky_lines is None else SkyLines(*np.array(how.sky_lines).T)
        return sky_line_mask(
            self.data.grid.wavelength(), lines, how.sky_min_intensity, how.sky_half_width
        )

    @cached_property
    def blind_L(self) -> np.ndarray:
        """Rebinned pixels that sky lines cover wholly, in every spectrum, bool."""
        factor, size = self.recipe.input.rebin, self.grid.size
        return self.sky_L[: size * factor].reshape(size, factor).all(axis=1)

    @classmethod
    def examples(cls) -> list[Example]:
        return examples()

    @classmethod
    def search_space(cls, recipe: OutliersRecipe) -> dict[str, Choice | Range]:
        return {
            "train.optimizer.lr": Range(2e-4, 1e-2, log=True),
            "train.batch_size": Choice((32, 64, 128, 256)),
            "network.latents": Choice((4, 6, 8, 10)),
            "network.activation": Choice(("leaky_relu", "speculator")),
        }

    def objective(self) -> Objective:
        return Objective("fidelity", "fidelity", "min")

    # training ------------------------------------------------------------------------------
    def build_model(self) -> OutlierModel:
        return OutlierModel(self.recipe, self.grid)

    def stages(self) -> list[Stage]:
        invariance = InvarianceLoss(self.recipe, self.grid, self.blind_L)

        def usable(columns: Columns) -> np.ndarray:
            return columns["problem"] == 0

        def latents(model: OutlierModel, batch: Tensors) -> Tensors:
            return {"latent": model.autoencoder.encoder(batch["y"]).float()}

        def standardise(flow: nn.Module, batch: Tensors) -> None:
            flow.set_standardisation(batch["latent"])

        return [
            Stage(
                "fidelity", lambda model: model.autoencoder,
                FidelityLoss(self.recipe, self.grid, self.blind_L),
                self.recipe.train, rows=usable, monitor="fidelity",
            ),
            Stage(
                "invariance", lambda model: model.autoencoder, invariance,
                self.recipe.train_invariance, rows=usable, monitor="fidelity", keep="last",
                at_epoch=invariance.begin_epoch,
            ),
            Stage(
                "flow", lambda model: model.flow, flow_loss, self.recipe.train_flow,
                rows=usable, features=latents, prepare=standardise,
            ),
        ]  # fmt: skip

    def columns(self, training: bool) -> list[str]:
        return ["flux", "ivar", "mask", "redshift"]

    def transform(self, columns: Columns, training: bool) -> Columns:
        """Co-add pixels, mask sky lines, divide by the rest-frame median (paper §2).

        Returns ``y``, ``w`` float32 [B, L] (normalised flux and its inverse variance, 0 where
        nothing counts), ``z`` float32 [B], ``norm`` float32 [B] (flux units), ``problem`` int8 [B]
        (index into `PROBLEMS`; such rows are 0); with `training` also ``augment`` bool [B], true.
        """
        how = self.recipe.input
        flux = np.asarray(columns["flux"], dtype=np.float32)
        bad = (np.asarray(columns["mask"]) != 0) | (np.asarray(columns["ivar"]) <= 0)
        ivar = np.where(bad | self.sky_L, 0.0, columns["ivar"]).astype(np.float32)
        if self.recipe.switch("masked_pixels") == "corrected":
            flux = inpaint(flux, ivar <= 0)
        flux, ivar = _rebinned(flux, ivar, how.rebin)
        z, known = self._redshift(columns["redshift"])
        norm = rest_median(
            flux, ivar > 0, self.grid.wavelength(), z, how.normalise_low, how.normalise_high
        )
        problem = np.zeros(len(flux), dtype=np.int8)
        problem[~(norm > 0)] = 3
        if self.recipe.switch("negative_norm") == "as_published":
            problem[norm < 0] = 0
        problem[~np.isfinite(norm)] = 2
        problem[~known] = 1
        norm = np.where(problem == 0, norm, 1.0).astype(np.float32)
        y, w = flux / norm[:, None], ivar * np.square(norm[:, None])
        y[problem != 0], w[problem != 0] = 0.0, 0.0
        inputs = {
            "y": y.astype(np.float32),
            "w": w.astype(np.float32),
            "z": z.astype(np.float32),
            "norm": norm,
            "problem": problem,
        }
        return inputs | ({"augment": np.ones(len(flux), dtype=bool)} if training else {})

    def transform_settings(self) -> dict[str, Any]:
        return {
            "input": self.recipe.input.snapshot(),
            "masked_pixels": self.recipe.switch("masked_pixels"),
            "negative_norm": self.recipe.switch("negative_norm"),
            "grid": self.data.grid.to_dict(),
        }

    def _redshift(self, redshift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return z with unknown ones 0, and which are known."""
        z = np.asarray(redshift, dtype=np.float64)
        limit = self.recipe.input.redshift_limit
        if limit is not None:  # stars: what is no stellar velocity is taken as at rest
            return np.where(np.abs(z) <= limit, z, 0.0), np.ones(len(z), dtype=bool)
        known = np.isfinite(z) & (z > -0.9)
        return np.where(known, z, 0.0), known

    # after training ------------------------------------------------------------------------
    def optimise_for_inference(self, model: OutlierModel) -> OutlierModel:
        return model.eval().fast()

    def export(self, model: OutlierModel, calibration: dict[str, Any], tensors: Tensors) -> Export:
        return exported(self, model)

    def raw_outputs(self, model: nn.Module, inputs: Columns) -> Columns:
        measured = self._measure(model, inputs) | {name: inputs[name] for name in ("y", "z")}
        good = inputs["problem"] == 0
        return {name: values[good] for name, values in measured.items()}

    def fit_calibration(self, found: Columns) -> tuple[dict[str, Any], Tensors]:
        """Keep the scores and latents of validation objects, which all ranks refer to."""
        if not len(found["y"]):
            raise ConfigError("outliers: no usable validation spectra to rank against")
        error = ModelError.fit(
            found["y"], found["weight"], found["model"], found["z"], self.grid.wavelength()
        )
        scores = {**found, **self._whitened(error, found, found)}
        latents = scores["latent"][:_ISOLATION_ROWS]
        scores["isolation"] = _isolation(latents, self.recipe.seed).score(scores["latent"])
        tensors = {
            f"reference_{name}": torch.as_tensor(np.sort(scores[name]).astype(np.float32))
            for name in SCORES
        }
        tensors |= {name: torch.as_tensor(value) for name, value in error.to_tensors().items()}
        return {}, tensors | {"latents": torch.as_tensor(latents)}

    def predict(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        if not len(inputs["y"]):  # networks and forests refuse no rows: answer one, and cut it
            blank = {name: np.zeros((1, *v.shape[1:]), v.dtype) for name, v in inputs.items()}
            answer = self.predict(model, blank, calibration, tensors)
            return {name: values[:0] for name, values in answer.items()}
        found = self.infer(model, inputs, calibration, tensors)
        return self.finish(found, calibration, tensors)

    def infer(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        found = self._measure(model, inputs)
        if "augment" in inputs:  # scoring: latents of the same object at another redshift
            found["moved_latent"] = self._augmented_latents(model, inputs)
        return found | {name: inputs[name] for name in ("y", "z", "norm", "problem")}

    def finish(self, found: Columns, calibration: dict[str, Any], tensors: Tensors) -> Columns:
        kept = {name: value.cpu().numpy() for name, value in tensors.items()}
        if getattr(self, "_forest_of", None) is not tensors:  # once a predictor
            self._forest = _isolation(kept["latents"], self.recipe.seed)
            self._forest_of = tensors
        scores = {**found, "isolation": self._forest.score(found["latent"])}
        scores |= self._whitened(ModelError.from_tensors(kept), scores, found)
        bad = found["problem"] != 0
        unknown = [name for name in SCORES if name != "missing"]
        for name in ("latent", *unknown, "fidelity"):
            scores[name] = np.where(bad.reshape(len(bad), *[1] * (scores[name].ndim - 1)), np.nan,
                                    scores[name]).astype(np.float32)  # fmt: skip
        reference = {name: kept[f"reference_{name}"] for name in SCORES}
        rows = len(reference["neg_log_p"])
        output: Columns = {
            f"latent_{i}": scores["latent"][:, i] for i in range(scores["latent"].shape[1])
        }
        output |= {name: scores[name].astype(np.float32) for name in (*SCORES, "fidelity")}
        rank = percentile(scores["neg_log_p"], reference["neg_log_p"])
        output["percentile"] = rank.astype(np.float32)
        strange = metrics.combined_rank({name: scores[name] for name in RANKED}, reference)
        output["strangeness"] = np.where(bad, np.nan, strange).astype(np.float32)
        output["in_domain"] = ~bad & (strange < np.log10(rows))
        output["problem"] = np.array(PROBLEMS, dtype=object)[found["problem"]]
        output["norm"] = found["norm"]
        output["model"] = scores["model"] * found["norm"][:, None]
        output["model_wavelength"] = np.broadcast_to(self.grid.wavelength(), output["model"].shape)
        if "moved_latent" in found:
            moved = found["moved_latent"]
            output |= {f"moved_latent_{i}": moved[:, i] for i in range(moved.shape[1])}
        return output

    @torch.inference_mode()
    def _measure(self, model: OutlierModel, inputs: Columns) -> dict[str, np.ndarray]:
        """Return latent [B, S], model [B, L], neg_log_p, fidelity, χ² and missing share [B]."""
        parts = [self._measure_chunk(model, inputs, at) for at in _chunks(len(inputs["y"]))]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _measure_chunk(self, model: OutlierModel, inputs: Columns, at: slice):
        device = next(model.parameters()).device
        y, w, z = (torch.as_tensor(inputs[name][at]).to(device) for name in ("y", "w", "z"))
        made = model.autoencoder(y, z)
        log_p = model.flow.log_prob(made.latent.float())
        y, w, fit, valid = (t.cpu().numpy() for t in (y, w, made.model.float(), made.valid))
        chi2, pixels = metrics.reduced_chi2(y, w, fit, valid)
        return {
            "latent": made.latent.float().cpu().numpy(),
            "neg_log_p": -log_p.cpu().numpy(),
            "chi2_reduced": chi2,
            "fidelity": 0.5 * chi2 * pixels / y.shape[1],
            "missing": (1.0 - pixels / y.shape[1]).astype(np.float32),
            "model": fit,
            "weight": np.where(valid, w, 0.0),
        }

    def _whitened(
        self, error: ModelError, scores: Columns, inputs: Columns
    ) -> dict[str, np.ndarray]:
        """Return χ² per pixel and the worst window, with the model's own error in the noise."""
        wavelength, y, fit = self.grid.wavelength(), inputs["y"], scores["model"]
        width = max(3, round(_WINDOW_ANGSTROM / np.median(np.diff(wavelength))))
        weight = error.whitened(scores["weight"], fit, inputs["z"], wavelength)
        valid = scores["weight"] > 0
        residual = metrics.residual_over_sigma(y, weight, fit, valid)
        return {
            "chi2_whitened": metrics.reduced_chi2(y, weight, fit, valid)[0],
            "chi2_window": metrics.windowed_chi2(residual, width)[0],
        }

    @torch.inference_mode()
    def _augmented_latents(self, model: OutlierModel, inputs: Columns) -> np.ndarray:
        device, how = next(model.parameters()).device, self.recipe.invariance
        generator = torch.Generator().manual_seed(self.recipe.seed)
        latents = []
        for at in _chunks(len(inputs["y"])):
            y, w, z = (torch.as_tensor(inputs[name][at]) for name in ("y", "w", "z"))
            y, _, _ = augment(
                y, w, z, self.grid, z_min=how.redshift_low, z_max=how.redshift_high,
                noise_share=how.noise_share, noise_level=how.noise_level,
                mode=self.recipe.switch("masked_pixels"), masked_L=torch.as_tensor(self.blind_L),
                generator=generator,
            )  # fmt: skip
            latents.append(model.autoencoder.encoder(y.to(device)).float().cpu().numpy())
        moved = np.concatenate(latents)
        return np.where((inputs["problem"] != 0)[:, None], np.nan, moved).astype(np.float32)

    def output_columns(self) -> list[OutputColumn]:
        described = [
            (f"latent_{i}", "float32", "", "latent of the autoencoder")
            for i in range(self.recipe.network.latents)
        ]
        described += [
            ("neg_log_p", "float32", "", "-log density of the latent (natural logarithm)"),
            ("chi2_reduced", "float32", "", "chi2 of the reconstruction per measured pixel"),
            ("chi2_whitened", "float32", "", "the same with the model's own error in the noise"),
            ("chi2_window", "float32", "", "its largest excess in 60 Angstrom, in sigma"),
            ("isolation", "float32", "", "isolation-forest score of the latent"),
            ("fidelity", "float32", "", "loss of stage 1: chi2 / 2 over all pixels"),
            ("missing", "float32", "", "share of pixels without weight"),
            ("percentile", "float32", "", "per cent of the population with a lower neg_log_p"),
            ("strangeness", "float32", "", "-log10 of the smallest tail among all scores"),
            ("in_domain", "bool", "", "some of the population are as strange as this"),
            ("problem", "str", "", "why there are no scores; empty where there are"),
            ("norm", "float32", "10**-17 erg s-1 cm-2 Angstrom-1", "median flux at rest 5300-5850"),
        ]
        return [OutputColumn(*entry) for entry in described]

    def detail_columns(self) -> list[str]:
        """``model`` [B, L], the reconstruction in flux units, and its ``model_wavelength``, Å."""
        return ["model", "model_wavelength"]

    def truth_columns(self) -> list[str]:
        return ["label", "redshift", "snr", "extra"]

    def scoring_table(self, table: Columns) -> Columns:
        """Return ``planted`` and ``type`` in place of the extras."""
        return metrics.with_notes(table)

    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        return metrics.evaluate_table(table)

    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        from skyray.families.outliers import figures  # matplotlib is no business of workers

        return figures.write_figures(self.scoring_table(table), metrics, folder)


def _rebinned(flux: np.ndarray, ivar: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Co-add by ivar; groups without weight keep their plain mean, which the encoder may see."""
    if factor == 1:
        return flux, ivar
    coadded, weight = rebin(flux, ivar, factor)
    whole = flux[:, : coadded.shape[1] * factor]
    plain = whole.reshape(*coadded.shape, factor).mean(axis=2)
    return np.where(weight > 0, coadded, plain).astype(np.float32), weight


def _isolation(latents: np.ndarray, seed: int) -> IsolationScore:
    return IsolationScore.fit(latents, seed)


def _chunks(rows: int):
    return [slice(start, start + _CHUNK) for start in range(0, rows, _CHUNK)]


FAMILY = OutliersFamily
