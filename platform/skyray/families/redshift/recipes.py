"""Configurations of GaSNet-II: the paper's three surveys and laptop variants of the same shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from skyray.cards import load_card
from skyray.config import Config
from skyray.families.base import Choice, Example, Mode, OptimizerConfig, Range, Recipe, TrainConfig
from skyray.models.gasnet import WIDTHS
from skyray.records import Grid


class InputGrid(Config):
    """The network's own wavelength grid (linear, vacuum Å)."""

    start: float = 4000.0
    step: float = Field(1.0, gt=0)
    pixels: int = Field(5001, ge=100)

    def grid(self) -> Grid:
        return Grid("linear", self.start, self.step, self.pixels)


class NetworkConfig(Config):
    """Layer sizes; the defaults are the paper's."""

    widths: tuple[int, ...] = WIDTHS
    dense: int = Field(256, gt=0)
    dropout: float = Field(0.5, ge=0, lt=1)


class FitConfig(Config):
    """The fit of templates beside the networks (see docs/redshift_fit.md)."""

    lsf_kms: float = Field(65.0, ge=0, description="σ of the spectrograph's line spread")
    error_floor: float = Field(
        0.05, ge=0, description="share of the light by which templates may be wrong, as noise"
    )
    forest_scatter: float = Field(
        0.5, ge=0, description="the same behind the Lyα forest, which scatters about its mean"
    )
    prior_share: float = Field(
        0.05, gt=0, le=1, description="uniform share of the networks' prior; 1: they say nothing"
    )
    min_delta_chi2: float = Field(
        16.0, ge=0, description="below it another redshift, or class, is as good (quality bits)"
    )
    min_delta_chi2_quasar: float = Field(
        50.0, ge=0, description="the same between redshifts of quasars, whose lines mimic others"
    )
    max_chi2: float = Field(4.0, gt=0, description="χ² a pixel above which no template fits")
    galaxy_kms: float = Field(15.0, ge=0, description="systematic σ of a galaxy's redshift")
    quasar_kms: float = Field(400.0, ge=0, description="the same of quasars, whose lines shift")
    star_kms: float = Field(10.0, ge=0, description="the same of stars")

    def systematic_kms(self, spectype: str) -> float:
        return {"GALAXY": self.galaxy_kms, "QSO": self.quasar_kms}.get(spectype, self.star_kms)


# Paper §3.3: Adam, batch 128, 50 epochs, 1e-3 halved every 5 epochs.
PUBLISHED_TRAINING = TrainConfig(
    batch_size=128,
    epochs=50,
    optimizer=OptimizerConfig(name="adam", lr=1e-3, eps=1e-7, schedule="step", step_epochs=5),
)


class RedshiftRecipe(Recipe):
    """Everything a GaSNet-II run depends on."""

    family: Literal["redshift"] = "redshift"
    train: TrainConfig = Field(PUBLISHED_TRAINING, description="training of the classifier")
    train_redshift: TrainConfig = Field(
        PUBLISHED_TRAINING, description="training of each redshift network"
    )
    input: InputGrid = InputGrid()
    network: NetworkConfig = NetworkConfig()
    members: int = Field(10, ge=1, description="redshift networks in each class's ensemble")
    redshift_scale: float = Field(10.0, gt=0, description="network target = scale · z")
    redshift_max: float = Field(5.0, gt=0, description="targets are clipped to [0, this]")
    redshift_target: Literal["linear", "log"] = Field(
        "linear", description="target scale·z as published, or scale·ln(1+z)"
    )
    huber_delta: float = Field(0.1, gt=0, description="in units of the scaled target")
    redshift_classes: tuple[str, ...] | None = Field(
        None, description="classes that get redshift networks; null: all that are not stars"
    )
    noise_augmentation: float = Field(
        0.0, ge=0, description="training only: extra white noise up to this share of the rms"
    )
    # Switches; null follows `mode`.
    masked_pixels: Mode | None = Field(
        None, description="as_published: raw flux; corrected: bad pixels interpolated"
    )
    init: Mode | None = Field(
        None, description="as_published: weights N(0, 1e-3²); corrected: scaled with fan-in (He)"
    )
    ensemble: Mode | None = Field(
        None,
        description="as_published: members share batches and one checkpoint; "
        "corrected: each has its own order and best epoch",
    )
    redshift_errors: Mode | None = Field(
        None, description="as_published: ensemble std; corrected: scaled to cover 68 %"
    )
    probabilities: Mode | None = Field(
        None, description="as_published: softmax; corrected: temperature-scaled softmax"
    )
    template_fit: Mode | None = Field(
        None, description="as_published: networks alone; corrected: templates decide with them"
    )
    networks: bool = Field(True, description="false: templates alone, nothing is trained")
    fit: FitConfig = FitConfig()


# No dropout: in networks this small it biases redshifts.
_LAPTOP_NETWORK = NetworkConfig(widths=(8, 16, 32, 64, 128, 256), dense=128, dropout=0.0)
_LAPTOP_GRID = InputGrid(step=2.5, pixels=2001)


def _one_cycle(epochs: int, batch_size: int) -> TrainConfig:
    return TrainConfig(
        batch_size=batch_size,
        epochs=epochs,
        precision="float32",
        clip_norm=1.0,
        optimizer=OptimizerConfig(name="adamw", lr=2e-3, weight_decay=0.01, schedule="onecycle"),
    )


def _laptop(name: str, epochs: int = 20, epochs_redshift: int = 30) -> RedshiftRecipe:
    return RedshiftRecipe(
        name=name,
        train=_one_cycle(epochs, 64),
        train_redshift=_one_cycle(epochs_redshift, 64),
        input=_LAPTOP_GRID,
        network=_LAPTOP_NETWORK,
        members=3,
        redshift_target="log",
    )


def sdss_dr16() -> RedshiftRecipe:
    """13 SDSS classes, the paper's network and schedule."""
    return RedshiftRecipe(name="sdss_dr16")


def sdss_dr16_as_published() -> RedshiftRecipe:
    """13 SDSS classes exactly as the released code trains and scores them."""
    return RedshiftRecipe(name="sdss_dr16_as_published", mode="as_published")


def sdss_dr16_laptop() -> RedshiftRecipe:
    """13 SDSS classes on 2 cores in minutes: half the widths, 2.5 Å pixels, 3 members."""
    return _laptop("sdss_dr16_laptop")


def sdss_coarse() -> RedshiftRecipe:
    """STAR, GALAXY, QSO on SDSS spectra of every subtype."""
    return RedshiftRecipe(name="sdss_coarse")


def sdss_coarse_laptop() -> RedshiftRecipe:
    """STAR, GALAXY, QSO on 2 cores."""
    return _laptop("sdss_coarse_laptop", epochs=10, epochs_redshift=40)


def desi_edr() -> RedshiftRecipe:
    """STAR, QSO, GALAXY of the DESI early data release."""
    return RedshiftRecipe(name="desi_edr")


def desi_edr_laptop() -> RedshiftRecipe:
    """DESI on 2 cores."""
    return _laptop("desi_edr_laptop")


def fourmost_mock() -> RedshiftRecipe:
    """10 classes of the 4MOST mock survey."""
    return RedshiftRecipe(name="fourmost_mock")


def fourmost_mock_laptop() -> RedshiftRecipe:
    """4MOST mock on 2 cores."""
    return _laptop("fourmost_mock_laptop")


def templates() -> RedshiftRecipe:
    """Templates alone: what `skyray fit` answers with."""
    return RedshiftRecipe(name="templates", networks=False)


def examples() -> list[Example]:
    """The network's shape at a hundredth of its size, in both modes."""
    tiny = sdss_coarse_laptop().override(
        ["network.widths=[4,8,8,16,16]", "network.dense=16", "network.dropout=0.3",
         "input.step=5.0", "input.pixels=1001", "members=2"]
    )  # fmt: skip
    card = load_card("sdss_coarse")
    # published starting weights of 1e-3 leave a network this small blind: all features alike
    published = tiny.override(["mode=as_published", "init=corrected"])
    return [Example(tiny, card), Example(published, card)]


def search_space() -> dict[str, Choice | Range]:
    """Return what a sweep tries."""
    return {
        "train.optimizer.lr": Range(2e-4, 1e-2, log=True),
        "train.optimizer.weight_decay": Range(1e-4, 0.1, log=True),
        "train.batch_size": Choice((32, 64, 128)),
        "network.dropout": Range(0.0, 0.6),
        "network.dense": Choice((64, 128, 256)),
        "noise_augmentation": Range(0.0, 0.5),
    }


RECIPES: dict[str, Callable[[], RedshiftRecipe]] = {
    make.__name__: make
    for make in (
        sdss_dr16,
        sdss_dr16_as_published,
        sdss_dr16_laptop,
        sdss_coarse,
        sdss_coarse_laptop,
        desi_edr,
        desi_edr_laptop,
        fourmost_mock,
        fourmost_mock_laptop,
        templates,
    )
}
