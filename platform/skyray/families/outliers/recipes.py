"""Configurations of the outlier search: DESI BGS galaxies and MWS stars, SDSS, laptop variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field

from skyray.cards import load_card
from skyray.config import Config
from skyray.families.base import Example, Mode, OptimizerConfig, Recipe, TrainConfig
from skyray.records import Grid


class InputConfig(Config):
    """How a spectrum is prepared for the encoder (paper §2)."""

    rebin: int = Field(1, ge=1, description="so many adjacent pixels are co-added by ivar")
    normalise_low: float = Field(5300.0, gt=0, description="rest-frame window of the median, Å")
    normalise_high: float = Field(5850.0, gt=0)
    sky_mask: bool = Field(True, description="weights are 0 near bright sky lines")
    sky_min_intensity: float = Field(
        0.5, gt=0, description="weaker lines are not masked; .5 masks a quarter, as in the paper"
    )
    sky_half_width: float = Field(5.0, gt=0, description="Å, grows with the line's intensity")
    sky_lines: tuple[tuple[float, float], ...] | None = Field(
        None, description="(vacuum Å, intensity) of each line; null: the platform's own table"
    )
    redshift_limit: float | None = Field(
        None, description="larger |redshift| counts as 0: for a star that is listed as a galaxy"
    )


class NetworkConfig(Config):
    """Layer sizes; the defaults are the released DESI model's (13.464 M parameters)."""

    latents: int = Field(6, ge=1)
    widths: tuple[int, int, int] = (128, 256, 512)
    kernels: tuple[int, int, int] = (5, 11, 21)
    pools: tuple[int, int] = (5, 11)
    encoder_hidden: tuple[int, ...] = (128, 64, 32)
    decoder_hidden: tuple[int, ...] = (64, 256, 1024)
    activation: Literal["leaky_relu", "speculator"] = "leaky_relu"
    rest_start: float = Field(2000.0, gt=0, description="rest-frame grid of the decoder, Å")
    rest_stop: float = Field(9824.0, gt=0)
    rest_pixels: int = Field(9780, ge=10)
    subpixels: int = Field(
        1, ge=1, description="samples of the model in each observed pixel, averaged"
    )
    lsf_kernel: tuple[float, ...] | None = Field(
        None, description="line-spread function in observed pixels, odd length; null: none"
    )

    def rest(self) -> Grid:
        step = (self.rest_stop - self.rest_start) / (self.rest_pixels - 1)
        return Grid("linear", self.rest_start, step, self.rest_pixels)


class InvarianceConfig(Config):
    """Augmentation and the two losses that make latents independent of redshift."""

    redshift_low: float = 0.0
    redshift_high: float = Field(0.8, description="augmented redshifts are uniform up to this")
    noise_share: float = Field(0.05, ge=0, le=1, description="share of pixels that get noise")
    noise_level: float = Field(0.2, ge=0, description="its sigma, in units of the maximum")
    similarity_weight: float = Field(1.0, ge=0)
    similarity_amplitude: float = Field(30.0, gt=0, description="W at 5000 Å (SDSS 20)")
    similarity_width: float = Field(2000.0, gt=0, description="Å (SDSS 1000)")
    consistency_weight: float = Field(1.0, ge=0)
    consistency_tolerance: float = Field(0.25, gt=0, description="as published only (SDSS .01)")
    k_kind: Literal["desi", "sdss"] = Field("desi", description="as published only")
    k_maximum: float = Field(5.0, gt=0, description="corrected: where the ramp of k ends")


class FlowConfig(Config):
    """The masked autoregressive flow on the latents."""

    layers: int = Field(5, ge=1)
    hidden: int = Field(50, ge=1)
    blocks: int = Field(2, ge=1)


# SCIENCE: Adam 1e-3, eps 1e-4, OneCycle, batch 512, clip 1, mixed precision.
def _one_cycle(epochs: int, batch_size: int = 512, lr: float = 1e-3, **changes) -> TrainConfig:
    optimizer = OptimizerConfig(
        name="adam", lr=lr, eps=changes.pop("eps", 1e-8), schedule="onecycle",
        advance=changes.pop("advance", "step"),
    )  # fmt: skip
    return TrainConfig(
        batch_size=batch_size, epochs=epochs, clip_norm=1.0, optimizer=optimizer, **changes
    )


class OutliersRecipe(Recipe):
    """Everything a run of the outlier search depends on."""

    family: Literal["outliers"] = "outliers"
    train: TrainConfig = Field(_one_cycle(100), description="stage 1: fidelity")
    train_invariance: TrainConfig = Field(
        _one_cycle(30), description="stage 2: fidelity, similarity and consistency"
    )
    train_flow: TrainConfig = Field(
        _one_cycle(100, 256, 1e-3), description="stage 3: density of the latents"
    )
    input: InputConfig = InputConfig()
    network: NetworkConfig = NetworkConfig()
    invariance: InvarianceConfig = InvarianceConfig()
    flow: FlowConfig = FlowConfig()
    # Switches; null follows `mode`.
    masked_pixels: Mode | None = Field(
        None, description="as_published: the encoder sees them; corrected: interpolated over"
    )
    negative_norm: Mode | None = Field(
        None, description="as_published: a negative median flips the spectrum; corrected: refused"
    )
    fidelity_reduction: Mode | None = Field(
        None, description="as_published: summed over the batch; corrected: its mean (eq. 1)"
    )
    loss_scale: Mode | None = Field(
        None,
        description="as_published: fixed scales of distance; corrected: relative to the batch",
    )
    k_schedule: Mode | None = Field(
        None, description="as_published: sawtooth, 0 at the end; corrected: rises and stays"
    )
    flow_scale: Mode | None = Field(
        None, description="as_published: latents times 20; corrected: standardised by the data"
    )


def desi_bgs() -> OutliersRecipe:
    """DESI BGS galaxies at full size."""
    return OutliersRecipe(name="desi_bgs")


def desi_bgs_as_published() -> OutliersRecipe:
    """DESI BGS galaxies as the released code trains them."""
    return OutliersRecipe(
        name="desi_bgs_as_published",
        mode="as_published",
        train=_one_cycle(100, eps=1e-4, advance="epoch"),
        train_invariance=_one_cycle(30, eps=1e-4, advance="epoch"),
    )


def desi_mws() -> OutliersRecipe:
    """DESI MWS stars at full size: the second density of the star/galaxy decision."""
    return _of_stars(desi_bgs(), "desi_mws")


def sdss() -> OutliersRecipe:
    """SDSS galaxies with the released SDSS settings (10 latents in the first paper, here 6)."""
    return OutliersRecipe(
        name="sdss",
        network=NetworkConfig(
            activation="speculator", rest_start=2359.0, rest_stop=9500.0, rest_pixels=7000
        ),
        invariance=InvarianceConfig(
            redshift_high=0.5, similarity_amplitude=20.0, similarity_width=1000.0,
            consistency_tolerance=0.01, k_kind="sdss",
        ),
    )  # fmt: skip


def desi_bgs_laptop() -> OutliersRecipe:
    """DESI BGS galaxies on 2 cores: 3.2 Å pixels, narrower layers."""
    return OutliersRecipe(
        name="desi_bgs_laptop",
        train=_one_cycle(40, 64, 3e-3),
        train_invariance=_one_cycle(20, 64, 1e-3),
        train_flow=_one_cycle(40, 128, 2e-3),
        invariance=InvarianceConfig(consistency_weight=10.0),
        input=InputConfig(rebin=4),
        network=NetworkConfig(
            widths=(16, 32, 64), encoder_hidden=(64, 48, 32), decoder_hidden=(64, 256, 512),
            rest_pixels=4891, subpixels=2,
        ),
    )  # fmt: skip


def desi_mws_laptop() -> OutliersRecipe:
    """DESI MWS stars on 2 cores."""
    return _of_stars(desi_bgs_laptop(), "desi_mws_laptop")


def _of_stars(galaxies: OutliersRecipe, name: str) -> OutliersRecipe:
    """Stars: radial velocities of ±600 km/s; a redshift beyond them is not a star's."""
    return galaxies.override(
        [f"name={name}", "input.redshift_limit=0.005", "network.rest_start=3500.0",
         "invariance.redshift_low=-0.002", "invariance.redshift_high=0.002"]
    )  # fmt: skip


def examples() -> list[Example]:
    """Galaxies in both modes and stars, with a network of a hundredth of the size."""
    small = (
        "network.widths=[4,6,8]", "network.encoder_hidden=[8]", "network.decoder_hidden=[8,16]",
        "network.latents=3", "network.rest_pixels=1200", "network.subpixels=1", "input.rebin=8",
        "flow.hidden=8", "flow.layers=2",
    )  # fmt: skip
    galaxies, stars = desi_bgs_laptop().override(small), desi_mws_laptop().override(small)
    card = load_card("desi_bgs")
    return [
        Example(galaxies, card),
        Example(galaxies.override(["mode=as_published"]), card),
        Example(stars, load_card("desi_mws")),
    ]


RECIPES: dict[str, Callable[[], OutliersRecipe]] = {
    make.__name__: make
    for make in (
        desi_bgs,
        desi_bgs_as_published,
        desi_mws,
        sdss,
        desi_bgs_laptop,
        desi_mws_laptop,
    )
}
