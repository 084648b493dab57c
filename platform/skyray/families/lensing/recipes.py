"""Configurations of lens classification under domain adaptation, full size and for a laptop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

from pydantic import Field, model_validator

from skyray.cards import load_card
from skyray.config import Config
from skyray.families.base import Example, Mode, OptimizerConfig, Recipe, TrainConfig
from skyray.models.equivariant import EquivariantConfig
from skyray.models.vision import VisionConfig
from skyray.transforms.augment import AugmentConfig

Method = Literal["source_only", "adda", "dann", "coral", "self_ensembling"]
FLIPS = AugmentConfig(rotation_deg=0, zoom=0, shift=0)
NUDGES = AugmentConfig(rotation_deg=0, zoom=0, shift=0.03)


class NetworkConfig(Config):
    """The encoder (images → features), the linear classifier and the discriminator behind it."""

    encoder: Literal["equivariant", "vision"] = "equivariant"
    equivariant: EquivariantConfig = EquivariantConfig()
    vision: VisionConfig = VisionConfig(architecture="efficientnet_b0")
    features: int = Field(256, ge=2, description="width of what encoders return")
    discriminator: tuple[int, ...] = Field((256, 256), description="hidden layers")

    @model_validator(mode="after")
    def _images_alone(self):
        if self.vision.metadata:
            raise ValueError("network.vision.metadata: lenses have none; expected 0")
        return self


class AdaptationConfig(Config):
    """What the methods of adaptation need beside a learning rate."""

    encoder_lr_factor: float = Field(
        0.1, gt=0, description="adda: rate of the encoder over that of the discriminator"
    )
    domain_weight: float = Field(
        0.1, ge=0, description="dann: largest weight of the reversed gradient"
    )
    coral_weight: float = Field(1.0, ge=0, description="coral: weight of the covariance distance")
    consistency_weight: float = Field(3.0, ge=0, description="self_ensembling")
    balance_weight: float = Field(
        0.005, ge=0, description="self_ensembling: pull of the mean prediction to even classes"
    )
    confidence: float = Field(
        0.968, ge=0, lt=1, description="self_ensembling: the teacher must be as sure as this"
    )
    teacher_memory: float = Field(0.99, ge=0, lt=1, description="self_ensembling: of the mean")
    augment: AugmentConfig = Field(NUDGES, description="self_ensembling: of student and teacher")


# Paper §4: Adam, rate 2e-3, decay 1e-5, at most 200 epochs, patience 15.
PUBLISHED_TRAINING = TrainConfig(
    batch_size=64,
    epochs=200,
    early_stopping=15,
    optimizer=OptimizerConfig(name="adam", lr=2e-3, weight_decay=1e-5),
)
PUBLISHED_ADAPTATION = TrainConfig(
    batch_size=128,
    epochs=200,
    early_stopping=15,
    optimizer=OptimizerConfig(name="adam", lr=1e-4, weight_decay=1e-5),
)


class LensingRecipe(Recipe):
    """Everything a run of lens classification depends on."""

    family: Literal["lensing"] = "lensing"
    source: str = Field("euclid", description="survey whose labels are learnt")
    target: str = Field("hst", description="survey to answer on; its labels are not used")
    method: Method = "adda"
    train: TrainConfig = Field(PUBLISHED_TRAINING, description="supervised, on the source")
    train_adaptation: TrainConfig = Field(PUBLISHED_ADAPTATION, description="source and target")
    network: NetworkConfig = NetworkConfig()
    field_arcsec: float | None = Field(
        5.12, gt=0, description="side of the field seen, by the pixel scale; null: pixels as given"
    )
    augment: AugmentConfig = Field(FLIPS, description="of images in supervised training")
    adaptation: AdaptationConfig = AdaptationConfig()
    serving: Literal["auto", "float32", "bf16"] = Field(
        "auto", description="precision of predictions; auto: bf16 where the processor has it"
    )
    # Switches; null follows `mode`.
    scaling: Mode | None = Field(
        None, description="as_published: images as they are; corrected: divided by their rms"
    )
    selection: Mode | None = Field(
        None, description="as_published: best epoch by labels of the target; corrected: without"
    )
    adda_step: Mode | None = Field(
        None,
        description="as_published: target batches pass twice a step and move the norms' "
        "statistics twice; corrected: once",
    )

    @model_validator(mode="after")
    def _two_surveys(self):
        if self.source == self.target:
            raise ValueError(
                f"source and target: expected two surveys, found {self.source!r} twice"
            )
        return self


def euclid_to_hst() -> LensingRecipe:
    """Euclid → HST with the D₂ network and ADDA, at full size; GPUs."""
    return LensingRecipe(name="euclid_to_hst")


def hst_to_euclid() -> LensingRecipe:
    """HST → Euclid with the D₂ network and ADDA, at full size; GPUs."""
    return LensingRecipe(name="hst_to_euclid", source="hst", target="euclid")


def euclid_to_hst_as_published() -> LensingRecipe:
    """Euclid → HST as the released code does it, 150 pixels and a flattened map included."""
    network = NetworkConfig(
        equivariant=EquivariantConfig(readout="flatten", mask=True, input_size=150)
    )
    return LensingRecipe(
        name="euclid_to_hst_as_published", mode="as_published", network=network, field_arcsec=None
    )


def euclid_to_hst_efficientnet() -> LensingRecipe:
    """Euclid → HST with EfficientNet-B0 and ADDA, at full size; GPUs."""
    return LensingRecipe(name="euclid_to_hst_efficientnet", network=NetworkConfig(encoder="vision"))


def _one_cycle(epochs: int, batch_size: int, lr: float, precision: str) -> TrainConfig:
    optimizer = OptimizerConfig(name="adam", lr=lr, weight_decay=1e-5, schedule="onecycle")
    return TrainConfig(
        batch_size=batch_size, epochs=epochs, optimizer=optimizer, precision=precision
    )


def euclid_to_hst_laptop() -> LensingRecipe:
    """Euclid → HST on 2 cores: a quarter of the fields, 64 pixels, bfloat16."""
    return LensingRecipe(
        name="euclid_to_hst_laptop",
        train=_one_cycle(14, 32, 4e-3, "bf16"),
        train_adaptation=_constant(5, 64, 1e-3),
        # the published rate of the encoder: at ten times that it drifts and forgets the classes
        adaptation=AdaptationConfig(encoder_lr_factor=0.01),
        network=NetworkConfig(
            equivariant=EquivariantConfig(fields=(6, 12, 12, 24, 24, 16)), features=64,
            discriminator=(64, 64),
        ),
    )  # fmt: skip


def hst_to_euclid_laptop() -> LensingRecipe:
    """HST → Euclid on 2 cores."""
    return _turned(euclid_to_hst_laptop(), "hst_to_euclid_laptop")


def euclid_to_hst_efficientnet_laptop() -> LensingRecipe:
    """Euclid → HST with EfficientNet-B0 on 2 cores, 64 pixels.

    In float32: gradients of depthwise convolutions are slower in bfloat16. An epoch takes twice
    as long as one of the D₂ network, so there are fewer.
    """
    recipe = euclid_to_hst_laptop()
    return recipe.override(
        ["name=euclid_to_hst_efficientnet_laptop", "network.encoder=vision",
         "train.precision=float32", "train_adaptation.precision=float32",
         "train.optimizer.lr=2e-3", "train.epochs=8", "train_adaptation.epochs=4"]
    )  # fmt: skip


def hst_to_euclid_efficientnet_laptop() -> LensingRecipe:
    """HST → Euclid with EfficientNet-B0 on 2 cores."""
    return _turned(euclid_to_hst_efficientnet_laptop(), "hst_to_euclid_efficientnet_laptop")


def _constant(epochs: int, batch_size: int, lr: float) -> TrainConfig:
    optimizer = OptimizerConfig(name="adam", lr=lr, weight_decay=1e-5)
    return TrainConfig(batch_size=batch_size, epochs=epochs, optimizer=optimizer, precision="bf16")


def _turned(recipe: LensingRecipe, name: str) -> LensingRecipe:
    return recipe.override([f"name={name}", f"source={recipe.target}", f"target={recipe.source}"])


def examples() -> list[Example]:
    """Every method of adaptation on lenses of 32 pixels, and the equivariant network."""
    small = ["network.features=12", "network.discriminator=[16,16]", "serving=float32"]
    vision = ["network.encoder=vision", "network.vision.architecture=test_resnet"]
    tiny = euclid_to_hst_laptop().override([*small, *vision])
    card = load_card("lenses_two_domains").override(["image_size=32"])
    methods = [tiny.override([f"method={method}"]) for method in get_args(Method)]
    equivariant = euclid_to_hst_laptop().override(
        [*small, "mode=as_published", "network.equivariant.fields=[1,1,1,1,1,1]"]
    )
    return [Example(recipe, card) for recipe in (*methods, equivariant)]


RECIPES: dict[str, Callable[[], LensingRecipe]] = {
    make.__name__: make
    for make in (
        euclid_to_hst,
        euclid_to_hst_as_published,
        euclid_to_hst_efficientnet,
        euclid_to_hst_efficientnet_laptop,
        euclid_to_hst_laptop,
        hst_to_euclid,
        hst_to_euclid_efficientnet_laptop,
        hst_to_euclid_laptop,
    )
}
