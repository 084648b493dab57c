"""Configurations of the morphology family: the paper's Xception, laptop variants, scratch.

Khan et al. 2019, "Deep learning at scale for the construction of galaxy catalogs in the Dark Energy
Survey", Phys. Lett. B 795, 248 (arXiv:1812.02183).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from pydantic import Field, model_validator

from skyray.cards import load_card
from skyray.config import Config
from skyray.families.base import Example, Mode, OptimizerConfig, Recipe, TrainConfig
from skyray.models.vision import ALERT_CNN, VisionConfig
from skyray.transforms.augment import AugmentConfig
from skyray.transforms.images import ColourMapping

# Keras counts 132 layers in Xception; the paper unfreezes from layer 40, then from layer 2.
KERAS_LAYERS, MIDDLE_LAYER, WHOLE_LAYER = 132, 40, 2


class ColourConfig(Config):
    """How calibrated bands become a colour image; display images (JPEG) are taken as they are."""

    bands: tuple[str, str, str] = Field(("i", "r", "g"), description="red, green, blue")
    stretch: Literal["linear", "lupton"] = "lupton"
    scale: float = Field(3.0, gt=0, description="lupton: stretch, in units of the limits' distance")
    q: float = Field(8.0, gt=0, description="lupton: asinh softening")
    clipped: bool = Field(False, description="cut off what exceeds the upper limit first")

    def mapping(self) -> ColourMapping:
        return ColourMapping(self.bands, self.stretch, self.scale, self.q, self.clipped)


def published_phase(epochs: int, precision: Literal["float32", "bf16"] = "float32") -> TrainConfig:
    """Return the paper's training of a stage: Adam 1e-4, plateau × .5 after 2, stop after 3."""
    return TrainConfig(
        batch_size=16,
        epochs=epochs,
        precision=precision,
        early_stopping=3,
        optimizer=OptimizerConfig(
            name="adam", lr=1e-4, eps=1e-7, schedule="plateau", step_factor=0.5, patience=2
        ),
    )


class MorphologyRecipe(Recipe):
    """Everything a run of the family depends on."""

    family: Literal["morphology"] = "morphology"
    network: VisionConfig = VisionConfig(
        architecture="legacy_xception", weights="imagenet", input_size=299, head=(1024, 1024),
        dropout=0.7,
    )  # fmt: skip
    train_head: TrainConfig | None = Field(
        published_phase(1), description="stage 1: head alone, base frozen; null: skip"
    )
    train_middle: TrainConfig | None = Field(
        published_phase(30), description="stage 2: layers from `middle_frozen` on; null: skip"
    )
    train: TrainConfig = Field(published_phase(30), description="stage 3: from `whole_frozen` on")
    middle_frozen: float = Field(
        MIDDLE_LAYER / KERAS_LAYERS, ge=0, le=1, description="share of the base frozen in stage 2"
    )
    whole_frozen: float = Field(
        WHOLE_LAYER / KERAS_LAYERS, ge=0, le=1, description="share of the base frozen in stage 3"
    )
    train_norms: bool = Field(
        True, description="False: the base's norm layers stay as pre-trained in every stage"
    )
    augment: AugmentConfig = AugmentConfig()
    augment_head: bool = Field(
        False, description="augment in stage 1 too; False computes its features once"
    )
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    fraction: float = Field(1.0, gt=0, le=1, description="share of the training objects used")
    positive: str = Field("spiral", description="class that precision, recall and ROC speak of")
    colour: ColourConfig = Field(ColourConfig(), description="for the corrected colour mapping")
    precision: Literal["float32", "bf16"] = Field("float32", description="of inference")
    views: Literal[1, 8] = Field(
        1, description="8: logits and features are the mean over all flips and quarter turns"
    )
    # Switches; null follows `mode`.
    colours: Mode | None = Field(
        None,
        description="as_published: SDSS (z, r, g) linear, DES (i, r, g) Lupton; "
        "corrected: `colour` for every survey",
    )
    clip: Mode | None = Field(
        None, description="limits [μ−σ, μ+5σ] of as_published: all pixels; corrected: fainter half"
    )
    input_statistics: Mode | None = Field(
        None, description="as_published: images in 0–1; corrected: as the network was pre-trained"
    )
    probabilities: Mode | None = Field(
        None, description="as_published: softmax; corrected: temperature-scaled softmax"
    )
    pseudo_labels: Mode | None = Field(
        None,
        description="of recursion; as_published: predicted with random augmentation; "
        "corrected: without",
    )

    @model_validator(mode="after")
    def _possible(self):
        if self.network.metadata:
            raise ValueError("network.metadata: cutouts carry no metadata; expected 0")
        if not self.network.weights and not self.train_norms:
            raise ValueError(
                "train_norms: false keeps the norms of the pre-training, but network.weights is "
                "'' (from scratch); expected true"
            )
        return self

    def vision(self) -> VisionConfig:
        """Return the network's configuration with the input statistics the switch asks for."""
        corrected = self.switch("input_statistics") == "corrected"
        known = self.network.architecture != ALERT_CNN
        normalise = "model" if corrected and known else "none"
        return self.network.model_copy(update={"normalise": normalise})


def _adamw(lr: float, epochs: int, stop: int | None, **options) -> TrainConfig:
    optimizer = OptimizerConfig(
        name="adamw", lr=lr, weight_decay=0.02, schedule="cosine", warmup_epochs=1.0
    )
    return TrainConfig(
        batch_size=32, epochs=epochs, early_stopping=stop, optimizer=optimizer, clip_norm=1.0,
        **options,
    )  # fmt: skip


_LAPTOP_AUGMENT = AugmentConfig(rot90=True, rotation_deg=45, zoom=0.2, shift=0.08)


def _lite0(name: str, input_size: int, **changes) -> MorphologyRecipe:
    values = dict(
        network=VisionConfig(
            architecture="tf_efficientnet_lite0", weights="imagenet", input_size=input_size,
            dropout=0.3,
        ),
        train_head=_adamw(3e-3, 30, 8),
        train_middle=_adamw(3e-4, 6, None),
        train=_adamw(2e-4, 14, None),
        middle_frozen=0.6,
        whole_frozen=0.0,
        train_norms=False,
        augment=_LAPTOP_AUGMENT,
        label_smoothing=0.05,
    )  # fmt: skip
    return MorphologyRecipe(name=name, **{**values, **changes})


def sdss_xception() -> MorphologyRecipe:
    """Spiral or elliptical with the paper's network and stages, in mixed precision."""
    return MorphologyRecipe(
        name="sdss_xception",
        train_head=published_phase(1, "bf16"),
        train_middle=published_phase(30, "bf16"),
        train=published_phase(30, "bf16"),
    )


def sdss_xception_as_published() -> MorphologyRecipe:
    """The same exactly as the released code trains it."""
    return MorphologyRecipe(
        name="sdss_xception_as_published", mode="as_published", augment_head=True
    )


def gz1_lite0_laptop() -> MorphologyRecipe:
    """Galaxy Zoo colour cutouts on 2 cores: EfficientNet-lite0 from ImageNet, 96 px, 3 stages."""
    return _lite0(
        "gz1_lite0_laptop", 96, train_middle=_adamw(3e-4, 4, None), train=_adamw(1e-4, 8, None),
        views=8,
    )  # fmt: skip


def gz1_lite0_scratch() -> MorphologyRecipe:
    """The same network and images from random weights, in one stage."""
    network = VisionConfig(architecture="tf_efficientnet_lite0", input_size=96, dropout=0.3)
    return _lite0(
        "gz1_lite0_scratch", 96, network=network, train_head=None, train_middle=None,
        train_norms=True, train=_adamw(1e-3, 20, None), views=8,
    )  # fmt: skip


def mock_sdss_laptop() -> MorphologyRecipe:
    """Mock SDSS galaxies on 2 cores; for images of 64–128 px."""
    return _lite0(
        "mock_sdss_laptop", 96, train_middle=_adamw(3e-4, 3, None), train=_adamw(2e-4, 6, None)
    )


def examples() -> list[Example]:
    """Three stages on mock galaxies of 48 pixels, in both modes, with a network of timm's tests."""
    tiny = mock_sdss_laptop().override(
        ["network.architecture=test_resnet", "network.weights=''", "network.input_size=null",
         "network.head=[8]", "train_norms=true"]
    )  # fmt: skip
    card = load_card("sdss_galaxies").override(["image_size=48"])
    published = tiny.override(["mode=as_published", "augment_head=true", "views=8"])
    return [Example(tiny, card), Example(published, card)]


RECIPES: dict[str, Callable[[], MorphologyRecipe]] = {
    make.__name__: make
    for make in (
        sdss_xception,
        sdss_xception_as_published,
        gz1_lite0_laptop,
        gz1_lite0_scratch,
        mock_sdss_laptop,
    )
}
