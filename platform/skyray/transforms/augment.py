"""Random flips, rotations, zooms and shifts of image batches, on their own device.

In torch, so that a loss may augment its batch on the accelerator. The same random state gives the
same images. Shape suffixes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch.nn import functional

from skyray.config import Config


class AugmentConfig(Config):
    """What may happen to an image in training; the defaults are Khan et al. 2019, Appendix B."""

    flip_horizontal: bool = True
    flip_vertical: bool = True
    rot90: bool = Field(False, description="quarter turns, each as likely")
    rotation_deg: float = Field(45.0, ge=0, le=180, description="uniform within ± this")
    zoom: float = Field(0.3, ge=0, lt=1, description="either axis by a factor within 1 ± this")
    shift: float = Field(0.3, ge=0, lt=1, description="either axis by ± this share of the side")

    @property
    def continuous(self) -> bool:
        """Whether pixels are interpolated."""
        return bool(self.rotation_deg or self.zoom or self.shift)

    @property
    def active(self) -> bool:
        return self.continuous or self.flip_horizontal or self.flip_vertical or self.rot90


NO_AUGMENTATION = AugmentConfig(
    flip_horizontal=False, flip_vertical=False, rotation_deg=0, zoom=0, shift=0
)
SYMMETRIES = AugmentConfig(rot90=True, rotation_deg=0, zoom=0, shift=0)


def augment(
    image_BCHW: torch.Tensor, config: AugmentConfig, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Return randomly changed images of the same shape; each image has its own draw.

    Flips and quarter turns move pixels exactly. Rotation, zoom and shift are one affine map with
    bilinear interpolation; beyond the edge the nearest pixel is repeated (as Keras does).

    Parameters
    ----------
    image_BCHW : float [B, C, H, W]
        Without NaN.
    generator : torch.Generator, optional
        Default: torch's global random state.

    Raises
    ------
    ValueError
        If quarter turns are asked of images that are not square.
    """
    image = image_BCHW
    rows = len(image)
    for wanted, axis in ((config.flip_horizontal, -1), (config.flip_vertical, -2)):
        if wanted:
            chosen = _uniform(rows, image, generator) < 0.5
            image = torch.where(chosen.view(-1, 1, 1, 1), image.flip(axis), image)
    if config.rot90:
        if image.shape[-1] != image.shape[-2]:
            raise ValueError(f"rot90: expected square images, found {tuple(image.shape)}")
        turns = (_uniform(rows, image, generator) * 4).long().clamp(max=3).view(-1, 1, 1, 1)
        for count in (1, 2, 3):
            image = torch.where(turns == count, torch.rot90(image, count, (-2, -1)), image)
    if config.continuous:
        theta = affine_maps(rows, config, image, generator)
        height, width = image.shape[-2:]
        # Rotations are of pixels, not of the −1…1 square.
        aspect = theta.new_tensor([[1.0, height / width, 1.0], [width / height, 1.0, 1.0]])
        grid = functional.affine_grid(theta * aspect, list(image.shape), align_corners=False)
        image = functional.grid_sample(
            image, grid.to(image.dtype), padding_mode="border", align_corners=False
        )
    return image


def affine_maps(
    rows: int, config: AugmentConfig, like: torch.Tensor, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draw the maps from output to input coordinates, float32 [rows, 2, 3], in half sides."""
    angle = _between(rows, math.radians(config.rotation_deg), like, generator)
    zoom_x, zoom_y, shift_x, shift_y = (
        _between(rows, limit, like, generator)
        for limit in (config.zoom, config.zoom, 2 * config.shift, 2 * config.shift)
    )
    cos, sin = torch.cos(angle), torch.sin(angle)
    zoom_x, zoom_y = 1 + zoom_x, 1 + zoom_y
    return torch.stack(
        [cos * zoom_x, -sin * zoom_y, shift_x, sin * zoom_x, cos * zoom_y, shift_y], dim=1
    ).view(rows, 2, 3)


def _uniform(rows: int, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    return torch.rand(rows, device=like.device, generator=generator)


def _between(rows: int, limit: float, like: torch.Tensor, generator) -> torch.Tensor:
    return (2 * _uniform(rows, like, generator) - 1) * limit
