"""Configurations of alert classifiers: the grid of the paper, and variants for a laptop.

Source: Rehemtulla et al., "Pre-training vision models for the classification of alerts" (grid,
Table 1), and the released code of BTSbot (the CNN's layers and dropouts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pydantic import Field

from skyray.cards import load_card
from skyray.config import Config
from skyray.families.base import Example, Mode, OptimizerConfig, Recipe, TrainConfig
from skyray.models.vision import VisionConfig
from skyray.transforms.alerts import FEATURES

FRACTIONS = (0.05, 0.1, 0.5, 1.0)


class Policy(Config):
    """When a source is acted upon: enough of its alerts score high and are bright."""

    alerts: int = Field(1, ge=1, description="alerts that must qualify")
    score: float = Field(0.5, ge=0, le=1, description="smallest score that qualifies")
    strict: bool = Field(False, description="the score must exceed the limit, not only reach it")
    magnitude: float = Field(19.0, description="an alert qualifies when brighter than this")
    peak: float | None = Field(
        None, description="the source's brightest alert so far must be this bright or brighter"
    )


POLICIES = {
    "bts_p1": Policy(alerts=2, score=0.5),
    "bts_p2": Policy(alerts=2, score=0.5, peak=18.5),
    "prod_p1": Policy(alerts=1, score=0.85, strict=True),
    "prod_p2": Policy(alerts=1, score=0.85, strict=True, peak=18.5),
}


class AlertsRecipe(Recipe):
    """Everything a training of an alert classifier depends on."""

    family: Literal["alerts"] = "alerts"
    network: VisionConfig = VisionConfig()
    positive: str | None = Field(None, description="the class that is sought; null: the last one")
    fraction: float = Field(
        1.0, gt=0, le=1, description="share of training objects; smaller shares are parts of larger"
    )
    alerts_per_object: int | None = Field(
        100, ge=1, description="at most so many alerts of an object in training; null: all"
    )
    features: tuple[str, ...] | None = Field(
        None, description="metadata that the dataset must have, in this order; null: its own"
    )
    augment: bool = Field(True, description="flips (p = .5) and quarter turns in training")
    backbone_lr_factor: float = Field(
        1.0, gt=0, description="learning rate of the backbone, in parts of the head's"
    )
    policies: dict[str, Policy] = Field(POLICIES, description="what is scored per source")
    crop: int | None = Field(
        None,
        ge=8,
        description="central pixels of each stamp that are used, normalised on their own",
    )
    input_scale: Literal["norm", "rms"] = Field(
        "norm", description="stamps of Frobenius norm 1, as published, or of root mean square 1, "
        "which small networks learn from sooner"
    )  # fmt: skip
    cutout_stretch: Literal["asinh", "none"] = Field(
        "asinh", description="of colour cutouts: in units of each band's noise; none: NaN to 0"
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32", description="of predictions; bf16 where the processor has it"
    )
    search: Literal["published", "wide"] = Field(
        "published", description="search space of sweeps: the paper's Table 1, or a wide one"
    )
    empty_stamps: Mode | None = Field(
        None, description="corrected: refused with a reason; as_published: NaN goes in"
    )
    stamp_position: Mode | None = Field(
        None, description="corrected: the source in the middle; as_published: stamps in the upper "
        "left corner, padded below and to the right"
    )  # fmt: skip
    fractions: Mode | None = Field(
        None, description="corrected: whole objects are left out; as_published: single alerts"
    )
    scored_sources: Mode | None = Field(
        None, description="policies count all sources; as_published: those with two alerts or "
        "more, without positives fainter than 18.5"
    )  # fmt: skip
    probabilities: Mode | None = Field(
        None, description="corrected: class weight taken out, temperature; as_published: the score"
    )


_ADAMW = OptimizerConfig(
    name="adamw", lr=5e-6, weight_decay=0.01, schedule="cosine", warmup_epochs=4
)
PUBLISHED_TRAINING = TrainConfig(batch_size=64, epochs=50, optimizer=_ADAMW, early_stopping=10)
_HEAD = {"head": (256, 16), "dropout": 0.5}
_ARCHITECTURES: dict[str, dict] = {
    "cnn": {"architecture": "alert_cnn", "head": (8,), "dropout": 0.0},
    "convnext": {"architecture": "convnext_pico", **_HEAD},
    "maxvit": {"architecture": "maxvit_tiny_rw_224", "input_size": 224, **_HEAD},
}
_METADATA = {"metadata": len(FEATURES), "metadata_layers": (128, 128), "metadata_dropout": 0.25}


def _grid(data: str, architecture: str, weights: str, multimodal: bool) -> AlertsRecipe:
    network = {**_ARCHITECTURES[architecture], "weights": weights}
    if multimodal:
        network |= _METADATA
    train = PUBLISHED_TRAINING
    if architecture == "cnn":  # learns from scratch, so not at a fine-tuning rate
        optimizer = _ADAMW.model_copy(update={"lr": 1e-4})
        train = train.model_copy(update={"optimizer": optimizer})
    return AlertsRecipe(
        name=grid_name(data, architecture, weights, multimodal), network=VisionConfig(**network),
        train=train, features=FEATURES if multimodal else None,
    )  # fmt: skip


def grid_name(data: str, architecture: str, weights: str, multimodal: bool) -> str:
    """Return the recipe's name of a cell of the grid, such as ``ztf_convnext_imagenet``."""
    parts = [data, architecture, weights, "multimodal" if multimodal else ""]
    return "_".join(part for part in parts if part)


def grid() -> dict[str, Callable[[], AlertsRecipe]]:
    """Return the paper's grid: architecture × weights × {ZTF, ZTF with metadata, Legacy Survey}."""
    made = {}
    for data, multimodal in (("ztf", False), ("ztf", True), ("legacy", False)):
        for architecture in _ARCHITECTURES:
            for weights in ("", "imagenet", "galaxyzoo"):
                if architecture == "cnn" and weights:
                    continue
                cell = (data, architecture, weights, multimodal)
                made[grid_name(*cell)] = partial(_grid, *cell)
    return made


# On stamps of norm 1 the published CNN needs far more than a few hundred alerts; a small ResNet
# with batch norms on stamps of rms 1 learns sooner and costs less.
_SMALL = {"architecture": "resnet10t", "head": (32,), "dropout": 0.2}


def _laptop(
    name: str, epochs: int, lr: float = 1e-3, crop: int | None = None, **network
) -> AlertsRecipe:
    optimizer = OptimizerConfig(
        name="adamw", lr=lr, weight_decay=0.01, schedule="cosine", warmup_epochs=1
    )
    return AlertsRecipe(
        name=name, network=VisionConfig(**{**_SMALL, **network}), crop=crop, input_scale="rms",
        train=TrainConfig(batch_size=32, epochs=epochs, optimizer=optimizer), search="wide",
    )  # fmt: skip


def ztf_laptop() -> AlertsRecipe:
    """Bright transients from images on 2 cores."""
    return _laptop("ztf_laptop", 15)


def ztf_laptop_multimodal() -> AlertsRecipe:
    """Bright transients from images and metadata on 2 cores."""
    return _multimodal("ztf_laptop_multimodal", FEATURES)


def lsst_laptop() -> AlertsRecipe:
    """Bright transients from Rubin's images (the middle 7 arcsec) on 2 cores."""
    return _laptop("lsst_laptop", 15, crop=35)


def lsst_laptop_multimodal() -> AlertsRecipe:
    """Bright transients from Rubin's images and the metadata that its card names, on 2 cores."""
    return _multimodal("lsst_laptop_multimodal", load_card("lsst_alerts").features, crop=35)


def _multimodal(name: str, features: Sequence[str], **options) -> AlertsRecipe:
    made = _laptop(
        name, 15, metadata=len(features), metadata_layers=(64, 32), metadata_dropout=0.2, **options
    )
    return made.model_copy(update={"features": tuple(features)})


def real_bogus_laptop() -> AlertsRecipe:
    """Real or bogus from the central 35 pixels on 2 cores."""
    return _laptop("real_bogus_laptop", 24, crop=35)


def real_bogus_lite0() -> AlertsRecipe:
    """Real or bogus with an EfficientNet-lite0 from scratch: the other half of the next one."""
    return _lite0("real_bogus_lite0", "")


def real_bogus_lite0_imagenet() -> AlertsRecipe:
    """Real or bogus with an EfficientNet-lite0 pre-trained on ImageNet (weights of a package)."""
    return _lite0("real_bogus_lite0_imagenet", "imagenet")


def _lite0(name: str, weights: str) -> AlertsRecipe:
    return _laptop(
        name, 24, lr=5e-4, crop=35, architecture="tf_efficientnet_lite0", weights=weights,
        input_size=70,
    )  # fmt: skip


def legacy_laptop() -> AlertsRecipe:
    """Bright transients from the reference sky in g, r, z on 2 cores."""
    return _laptop("legacy_laptop", 15)


def examples() -> list[Example]:
    """Alerts with metadata and without, and colour cutouts, with a network of timm's own tests."""
    small = ("network.architecture=test_resnet", "network.head=[8]")
    both = ztf_laptop_multimodal().override([*small, "network.metadata_layers=[16,8]"])
    bogus = real_bogus_laptop().override([*small, "mode=as_published"])
    return [
        Example(both, load_card("ztf_bts")),
        Example(bogus, load_card("ztf_real_bogus")),
        Example(legacy_laptop().override(small), load_card("legacy_survey_cutouts")),
    ]


RECIPES: dict[str, Callable[[], AlertsRecipe]] = {
    **grid(),
    **{
        make.__name__: make
        for make in (
            ztf_laptop,
            ztf_laptop_multimodal,
            lsst_laptop,
            lsst_laptop_multimodal,
            real_bogus_laptop,
            real_bogus_lite0,
            real_bogus_lite0_imagenet,
            legacy_laptop,
        )
    },
}
