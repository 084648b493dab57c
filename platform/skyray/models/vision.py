"""Networks for images: any timm architecture or BTSbot's CNN, with an optional metadata branch.

Shared by the alert, morphology and lensing families. A network has three parts, which name its
parameters: ``backbone`` (images → pooled features, the architecture's own head norm included),
``metadata`` (tabular features → embedding) and ``head`` (both, concatenated → logits).

Rehemtulla et al., "Pre-training vision models for the classification of alerts" (section 2.4); Khan
et al. 2019 on galaxies of the Dark Energy Survey; the architectures are timm's (Wightman 2019).

Shape suffixes: B batch, C bands, F backbone features, M metadata features, P penultimate features.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Literal

import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from skyray.config import Config, ConfigError
from skyray.models.alert_cnn import AlertCNN

ALERT_CNN = "alert_cnn"
_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU}


class VisionConfig(Config):
    """Architecture, pre-training and layer sizes of a `VisionNetwork`."""

    architecture: str = Field("convnext_pico", description="any timm name, or alert_cnn")
    weights: str = Field(
        "", description="'': from scratch; imagenet; galaxyzoo; or a .safetensors or .pth file"
    )
    input_size: int | None = Field(
        None, ge=8, description="pixels the network sees; null: the images' own size"
    )
    normalise: Literal["none", "model"] = Field(
        "none", description="model: mean and deviation of the pre-training, for images in 0–1"
    )
    head: tuple[int, ...] = Field((), description="hidden dense layers before the output")
    dropout: float = Field(0.0, ge=0, lt=1, description="after the first dense layer of the head")
    activation: Literal["relu", "gelu"] = Field("relu", description="of all dense layers")
    metadata: int = Field(0, ge=0, description="metadata features; 0: images alone")
    metadata_layers: tuple[int, ...] = Field((), description="dense layers of the metadata branch")
    metadata_dropout: float = Field(
        0.0, ge=0, lt=1, description="after the first dense layer of the metadata branch"
    )
    conv_dropout: tuple[float, float] = Field(
        (0.5, 0.55), description="alert_cnn only: share of channels dropped after each pooling"
    )


class MetadataNorm(nn.BatchNorm1d):
    """Batch norm that leaves missing values (NaN, ±inf) out of its statistics.

    A missing value becomes 0 before scale and shift: what the feature's mean would give. Without
    missing values it equals ``BatchNorm1d``, but for one row in training, which gives its shift
    where ``BatchNorm1d`` raises. Computed in float32 under autocast.
    """

    def forward(self, x_BM: torch.Tensor) -> torch.Tensor:
        """Return normalised features [B, M], float32 and finite."""
        x = x_BM.float()
        known = torch.isfinite(x)
        x = torch.where(known, x, 0.0)
        mean, variance = self._statistics(x, known) if self.training else self._running()
        y = torch.where(known, (x - mean) * torch.rsqrt(variance + self.eps), 0.0)
        return y * self.weight + self.bias

    def _running(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.running_mean, self.running_var

    def _statistics(self, x: torch.Tensor, known: torch.Tensor):
        """Return mean and variance [M] of the known values, and update the running ones."""
        count = known.sum(dim=0)
        some = count > 0
        mean = torch.where(some, x.sum(dim=0) / count.clamp(min=1), self.running_mean)
        square = torch.where(known, x - mean, 0.0).square().sum(dim=0)
        variance = torch.where(some, square / count.clamp(min=1), self.running_var)
        with torch.no_grad():
            unbiased = torch.where(some, square / (count - 1).clamp(min=1), self.running_var)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(unbiased, self.momentum)
            self.num_batches_tracked.add_(1)
        return mean, variance


class VisionNetwork(nn.Module):
    """Backbone, metadata branch and head.

    Initialisation follows torch's global random state; pre-trained weights are loaded afterwards
    by `skyray.models.vision_weights.load_pretrained`.

    Parameters
    ----------
    config : VisionConfig
    bands : int
        Bands C of the images; pre-trained first layers are adapted to any number.
    outputs : int
        Logits: 1 for a yes/no score, else the number of classes.
    image_size : int
        Pixels a side of the images that will be given. They are resized inside the network
        (bilinear, anti-aliased when shrinking) where `config.input_size` differs.

    Raises
    ------
    ConfigError
        If the architecture is unknown or cannot take this input size.
    """

    def __init__(self, config: VisionConfig, bands: int, outputs: int, image_size: int):
        super().__init__()
        self.config, self.bands = config, bands
        self.outputs, self.image_size = outputs, image_size
        self.input_size = config.input_size or image_size
        self.backbone = build_backbone(config, bands, self.input_size)
        # the same but for rounding; trains 1.1 to 1.5 × faster on a processor
        self.backbone.to(memory_format=torch.channels_last)
        mean, std = _statistics(config, bands)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        width = self.backbone.num_features
        self.base_width = width
        self.metadata: nn.Sequential | None = None
        if config.metadata:
            layers = [MetadataNorm(config.metadata)]
            layers += _dense(
                config.metadata, config.metadata_layers, config.metadata_dropout, config.activation
            )
            self.metadata = nn.Sequential(*layers)
            width += (config.metadata, *config.metadata_layers)[-1]
        self.head = nn.Sequential(*_dense(width, config.head, config.dropout, config.activation))
        if not config.head:
            self.head.append(nn.Dropout(config.dropout))
        self.output = nn.Linear((width, *config.head)[-1], outputs)

    def train(self, mode: bool = True) -> VisionNetwork:
        """Set training mode, but keep norm layers with frozen weights in evaluation mode.

        A frozen batch norm must use, and not move, its running statistics. So freeze first
        (``requires_grad_(False)``), then call ``train()``.
        """
        super().train(mode)
        for module in self.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, _NORMS) and weight is not None and not weight.requires_grad:
                module.eval()
        return self

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        """Return images [B, C, S, S] at the network's input size, normalised as configured."""
        expected = (self.bands, self.image_size, self.image_size)
        if image.ndim != 4 or tuple(image.shape[1:]) != expected:
            raise ValueError(f"expected images [B, {expected}], found {tuple(image.shape)}")
        if self.input_size != self.image_size:
            size, shrink = (self.input_size,) * 2, self.input_size < self.image_size
            image = functional.interpolate(image, size, mode="bilinear", antialias=shrink)
        return image if self.mean is None else (image - self.mean) / self.std

    def base(self, image: torch.Tensor) -> torch.Tensor:
        """Return pooled backbone features [B, F]: what may be cached while the backbone is frozen.

        They include the architecture's own head norm (ConvNeXt's LayerNorm), with metadata too.
        """
        return self.backbone(self.prepare(image))

    def join(self, base: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return the penultimate features [B, P] of base features [B, F] and metadata [B, M]."""
        if self.metadata is not None:
            if metadata is None:
                raise ValueError(f"metadata: expected [B, {self.config.metadata}], found none")
            base = torch.cat([base, self.metadata(metadata).to(base.dtype)], dim=1)
        return self.head(base)

    def features(self, image: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return the penultimate features [B, P]."""
        return self.join(self.base(image), metadata)

    def from_base(self, base: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, outputs] of cached base features [B, F]."""
        return self.output(self.join(base, metadata))

    def forward(self, image: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, outputs] of images [B, C, H, W] and metadata [B, M] (NaN = missing)."""
        return self.from_base(self.base(image), metadata)


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def build_backbone(config: VisionConfig, bands: int, input_size: int) -> nn.Module:
    """Return the image backbone, pooled, without classifier; its width is ``num_features``.

    Raises
    ------
    ConfigError
        If timm does not know the architecture, or it cannot be built for the input size.
    """
    if config.architecture == ALERT_CNN:
        return AlertCNN(bands, input_size, config.conv_dropout)
    import timm  # takes seconds

    options: dict[str, Any] = {"num_classes": 0, "in_chans": bands}
    if pretraining(config.architecture).fixed_input_size:
        options["img_size"] = input_size
        if config.architecture.startswith("maxvit") and input_size % 32:
            raise ConfigError(
                f"input_size: {config.architecture} needs a multiple of 32 pixels, found "
                f"{input_size}; set input_size=224 and images are resized to it"
            )
    try:
        return timm.create_model(config.architecture, **options)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"architecture {config.architecture}: timm cannot build it for {input_size} pixels and "
            f"{bands} bands ({error})"
        ) from None


def pretraining(architecture: str) -> Any:
    """Return timm's record of an architecture's pre-training: statistics, sizes, where it lies.

    Raises
    ------
    ConfigError
        If timm does not know the architecture.
    """
    import timm

    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=5)
        raise ConfigError(
            f"architecture {architecture!r}: expected {ALERT_CNN} or a timm name"
            + (f", such as {', '.join(close)}" if close else "")
        )
    found = timm.models.get_pretrained_cfg(architecture)
    return found if found is not None else timm.models.PretrainedCfg()


def _statistics(config: VisionConfig, bands: int):
    """Return the pre-training's mean and deviation [1, C, 1, 1], or (None, None)."""
    if config.normalise == "none":
        return None, None
    if config.architecture == ALERT_CNN:
        raise ConfigError("normalise: alert_cnn has no pre-training; expected none")
    cfg = pretraining(config.architecture)

    def shaped(values: tuple[float, ...]) -> torch.Tensor:
        if len(values) != bands:  # not red, green, blue: one value for all
            values = (sum(values) / len(values),) * bands
        return torch.tensor(values).view(1, bands, 1, 1)

    return shaped(cfg.mean), shaped(cfg.std)


def _dense(width: int, layers: tuple[int, ...], dropout: float, activation: str):
    """Return dense layers; dropout follows the first, as in both papers (alerts: Table 1)."""
    made: list[nn.Module] = []
    for index, units in enumerate(layers):
        made += [nn.Linear(width, units), _ACTIVATIONS[activation]()]
        if index == 0:
            made.append(nn.Dropout(dropout))
        width = units
    return made


def unfreeze_from(network: VisionNetwork, fraction: float) -> Callable[[str], bool]:
    """Return which parameters learn when the backbone is frozen up to a position.

    Layers are the backbone's modules that hold parameters of their own, in their order. Head and
    metadata branch always learn.

    Parameters
    ----------
    network : VisionNetwork
    fraction : float
        Share of layers that stays frozen: 0 = all learn, 1 = head only. Keras' "from layer 40 of
        132 on" is 40 / 132.

    Returns
    -------
    callable
        Parameter name within `network` → whether it learns.

    Raises
    ------
    ValueError
        If `fraction` lies outside 0–1.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected 0–1, found {fraction}")
    layers: dict[str, None] = {}
    for name, _ in network.named_parameters():
        if name.startswith("backbone."):
            layers[name.rpartition(".")[0]] = None
    frozen = set(list(layers)[: round(fraction * len(layers))])
    return lambda name: name.rpartition(".")[0] not in frozen
