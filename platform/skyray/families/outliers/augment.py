"""Augmented copies of spectra: the same object at another redshift, with a few noisy pixels.

The consistency loss asks that such a copy has the latents of its original (Liang et al. 2023,
SPENDER II). ``as_published`` follows the released DESI code. ``corrected`` differs on purpose:

- The encoder sees flux only, so what lies under the mask matters. A copy keeps w = 0 wherever it
  touches an unmeasured pixel; the released code interpolates w and leaves such pixels a little
  weight. Pixels that the instrument masks in every spectrum (sky lines) can be masked in the copy
  as well, since they stay where they are when the redshift changes.
- Masked pixels of the copy are filled as those of real spectra are before the encoder: interpolated
  between good neighbours (`fill='inpaint'`) or zero.
- Variances, not weights, are interpolated, so that no pixel claims more than its neighbours.
- The noise scales with the largest |y| among good pixels; the published maximum runs over sky
  residuals too. It goes to good pixels only.

All functions are vectorised torch without gradient and work on the device of their input.

Shape suffixes: B batch, L observed pixels.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

from skyray.families.base import Mode
from skyray.records import Grid

Fill = Literal["keep", "zero", "inpaint"]

# Added to w before it is inverted (released code).
_FLOOR = 1e-6
# A source position nearer to a pixel than this is that pixel: float64 rounding must not make an
# aligned copy touch its neighbours.
_ALIGNED = 1e-6


class Augmented(NamedTuple):
    """Augmented flux [B, L], its inverse variance [B, L] and the new redshifts [B]."""

    y: torch.Tensor
    w: torch.Tensor
    z: torch.Tensor


@torch.no_grad()
def augment(
    y_BL: torch.Tensor,
    w_BL: torch.Tensor,
    z_B: torch.Tensor,
    grid: Grid,
    *,
    z_max: float = 0.8,
    z_min: float = 0.0,
    noise_share: float = 0.05,
    noise_level: float = 0.2,
    mode: Mode = "corrected",
    fill: Fill | None = None,
    masked_L: torch.Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Augmented:
    """Return copies of the spectra at random redshifts and with noise on a few pixels.

    The copy at λ shows what the original shows at λ (1 + z) / (1 + z_new), z_new ~ U(z_min, z_max),
    by linear interpolation (the flux is not rescaled: spectra are normalised). Then each pixel,
    with probability `noise_share`, gets n ~ N(0, (noise_level · max y)²) and the weight
    w' = 1 / (1 / (w + 1e-6) + n²). Where the original was not observed, y = w = 0.

    Parameters
    ----------
    y_BL, w_BL : float [B, L]
        Normalised flux as the encoder sees it, and its inverse variance (0: masked).
    z_B : float [B]
        Redshifts of the spectra.
    grid : Grid
        The observed wavelengths.
    z_max, z_min : float
        Range of the new redshifts; stars use a small symmetric range (±.003 ≈ ±900 km/s).
    noise_share, noise_level : float
    mode : {'corrected', 'as_published'}
        See the module.
    fill : {'keep', 'zero', 'inpaint'}, optional
        What y holds where w = 0 inside the observed range. 'keep' leaves what interpolation gave.
        Default: 'inpaint' when corrected, 'keep' as published.
    masked_L : bool [L], optional
        Pixels masked in every spectrum of the instrument; the copy gets w = 0 there.
    generator : torch.Generator, optional
        Default: torch's global random state.

    Returns
    -------
    Augmented
        y, w: float32 [B, L]; z: dtype of `z_B`, [B].

    Raises
    ------
    ValueError
        If shapes do not fit or a range or share makes no sense.
    """
    _check(y_BL, w_BL, z_B, grid, z_min, z_max, noise_share)
    y, w = y_BL.float(), w_BL.float()
    draw = {"generator": generator, "device": y.device}
    z_new_B = z_min + (z_max - z_min) * torch.rand(z_B.shape, dtype=torch.float64, **draw)
    z_new_B = z_new_B.to(z_B.dtype)  # the redshift returned is the one used
    position_BL = source_position(grid, z_B, z_new_B)
    inside_BL = (position_BL > -_ALIGNED) & (position_BL < grid.size - 1 + _ALIGNED)

    published = mode == "as_published"
    new_y, new_w = _resample(y, w, position_BL, published)
    if masked_L is not None:
        new_w = new_w.masked_fill(masked_L.bool(), 0.0)
    if published:
        largest_B1 = y.amax(dim=1, keepdim=True)
    else:
        largest_B1 = torch.where(w > 0, y.abs(), 0.0).amax(dim=1, keepdim=True)
    chosen_BL = torch.rand(y.shape, **draw) < noise_share
    noise_BL = noise_level * largest_B1 * torch.randn(y.shape, **draw)
    if not published:
        chosen_BL &= new_w > 0
    noise_BL = torch.where(chosen_BL, noise_BL, 0.0)
    noisy_w = 1.0 / (1.0 / (new_w + _FLOOR) + noise_BL.square())
    new_y = new_y + noise_BL
    new_w = noisy_w if published else torch.where(chosen_BL, noisy_w, new_w)

    new_w = torch.where(inside_BL, new_w, 0.0)
    new_y = _filled(new_y, new_w > 0, fill or ("keep" if published else "inpaint"))
    return Augmented(torch.where(inside_BL, new_y, 0.0), new_w, z_new_B)


def _check(y, w, z, grid: Grid, z_min: float, z_max: float, noise_share: float) -> None:
    if y.ndim != 2 or y.shape != w.shape or z.shape != y.shape[:1]:
        shapes = [tuple(t.shape) for t in (y, w, z)]
        raise ValueError(f"augment: expected y [B, L], w [B, L] and z [B], found {shapes}")
    if y.shape[1] != grid.size:
        raise ValueError(f"augment: expected {grid.size} pixels of the grid, found {y.shape[1]}")
    if not -1 < z_min <= z_max:
        raise ValueError(f"augment: expected −1 < z_min ≤ z_max, found {z_min} and {z_max}")
    if not 0 <= noise_share <= 1:
        raise ValueError(f"noise_share: expected 0 … 1, found {noise_share}")


def source_position(grid: Grid, z_B: torch.Tensor, z_new_B: torch.Tensor) -> torch.Tensor:
    """Return where the copy's pixels lie in the original, in pixels, float64 [B, L].

    Pixel i of an object at z_new shows the rest wavelength that the original at z shows there.
    """
    factor_B1 = ((1.0 + z_B.double()) / (1.0 + z_new_B.double()))[:, None]
    pixel_L = torch.arange(grid.size, dtype=torch.float64, device=factor_B1.device)
    if grid.kind == "log10":
        return pixel_L + torch.log(factor_B1) / (math.log(10.0) * grid.step)
    wavelength_L = grid.start + grid.step * pixel_L
    return (wavelength_L * factor_B1 - grid.start) / grid.step


def _resample(
    y_BL: torch.Tensor, w_BL: torch.Tensor, position_BL: torch.Tensor, published: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Interpolate y, and w (published) or the variance 1 / w (corrected), at positions in pixels.

    Positions outside are held at the edge.
    """
    position = position_BL.clamp(0, y_BL.shape[1] - 1)
    nearest = position.round()
    position = torch.where((position - nearest).abs() < _ALIGNED, nearest, position)
    left = position.floor().long().clamp_max(y_BL.shape[1] - 2)
    fraction = (position - left).float()
    low, high = y_BL.gather(1, left), y_BL.gather(1, left + 1)
    w_low, w_high = w_BL.gather(1, left), w_BL.gather(1, left + 1)
    # By where: a neighbour without share in the pixel must not reach it, were it infinite.
    y = torch.where(fraction == 0, low, torch.lerp(low, high, fraction))
    if published:
        return y, torch.lerp(w_low, w_high, fraction)
    # 1 / ((1 − f) / w₀ + f / w₁), written without division by w
    spread = (1.0 - fraction) * w_high + fraction * w_low
    w = torch.where(spread > 0, w_low * (w_high / spread), 0.0)
    return y, torch.where(fraction == 0, w_low, torch.where(fraction == 1, w_high, w))


def _filled(y_BL: torch.Tensor, good_BL: torch.Tensor, fill: Fill) -> torch.Tensor:
    if fill == "keep":
        return y_BL
    if fill == "zero":
        return torch.where(good_BL, y_BL, 0.0)
    if fill == "inpaint":
        return inpaint(y_BL, good_BL)
    raise ValueError(f"fill: expected 'keep', 'zero' or 'inpaint', found {fill!r}")


def inpaint(y_BL: torch.Tensor, good_BL: torch.Tensor) -> torch.Tensor:
    """Replace bad pixels by a straight line between their good neighbours, [B, L].

    The torch twin of ``transforms.spectra.inpaint``: before the first and after the last good pixel
    the nearest good value is repeated, and a row without any becomes 0.
    """
    length = y_BL.shape[1]
    pixel_L = torch.arange(length, device=y_BL.device)
    before = torch.where(good_BL, pixel_L, -1).cummax(dim=1).values
    after = torch.where(good_BL, pixel_L, length).flip(1).cummin(dim=1).values.flip(1)
    left = torch.where(before < 0, after, before).clamp_max(length - 1)
    right = torch.where(after >= length, before, after).clamp_min(0)
    fraction = (pixel_L - left) / (right - left).clamp_min(1)
    line = torch.lerp(y_BL.gather(1, left), y_BL.gather(1, right), fraction.to(y_BL.dtype))
    line = torch.where(good_BL.any(dim=1, keepdim=True), line, 0.0)
    return torch.where(good_BL, y_BL, line)
