"""From the rest frame to what a spectrograph records: redshift, resampling, line-spread function.

Shape suffixes: B batch, L observed pixels, R rest-frame pixels.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from skyray.records import Grid

# Rounding of λ / (1 + z) must not push a pixel that lies on the first or last node out of range.
_EDGE = 1e-6  # rest-frame pixels


class Instrument(nn.Module):
    """The wavelengths a spectrograph observes and, where given, its line-spread function.

    The model is resampled on `kernel // 2` further pixels on each side and convolved there, so that
    the first and last pixels lose no flux. Convolution keeps the flux of a line (the kernel is
    normalised to sum 1) and, with an odd length, its place.

    Parameters
    ----------
    grid : Grid
        Observed grid of L pixels, Å, linear or log10.
    lsf : Tensor, optional
        Kernel in pixels of `grid`, odd length; a point source spreads by lsf[i] to offset
        i − len // 2.
    trainable : bool
        Whether the kernel is fitted.
    subpixels : int
        The model is sampled at so many points of each pixel and averaged: for pixels that are
        wide against the lines. 1 samples the pixel's centre, as published.

    Attributes
    ----------
    wavelength : float64 [L]
        Å; stays in double whatever the module is cast to.

    Raises
    ------
    ValueError
        If the kernel is not one-dimensional, of even length, or its sum is not positive.
    """

    def __init__(
        self,
        grid: Grid,
        lsf: torch.Tensor | None = None,
        trainable: bool = False,
        subpixels: int = 1,
    ):
        super().__init__()
        self.grid, self.margin, self.subpixels = grid, 0, subpixels
        kernel = None
        if lsf is not None:
            kernel = torch.as_tensor(lsf, dtype=torch.float32)
            if kernel.ndim != 1 or len(kernel) % 2 == 0 or not kernel.sum() > 0:
                raise ValueError(
                    "lsf: expected a 1-D kernel of odd length and positive sum, found shape "
                    f"{tuple(kernel.shape)}, sum {float(kernel.sum()):.3g}"
                )
            self.margin = len(kernel) // 2
            kernel = nn.Parameter(kernel / kernel.sum(), requires_grad=trainable)
        self.register_parameter("lsf", kernel)
        pixels = torch.arange(-self.margin, grid.size + self.margin, dtype=torch.float64)
        within = (torch.arange(subpixels, dtype=torch.float64) + 0.5) / subpixels - 0.5
        axis = grid.start + grid.step * (pixels[:, None] + within).reshape(-1)
        # Not in checkpoints: the grid that makes it is part of the configuration.
        extended = axis if grid.kind == "linear" else 10.0**axis
        self.register_buffer("extended", extended, persistent=False)

    @property
    def wavelength(self) -> torch.Tensor:
        axis = self.grid.start + self.grid.step * torch.arange(
            self.grid.size, dtype=torch.float64, device=self.extended.device
        )
        return axis if self.grid.kind == "linear" else 10.0**axis

    def _apply(self, fn, recurse: bool = True):
        # Casting a model to half precision would round wavelengths by several Å.
        exact = self.extended
        super()._apply(fn, recurse)
        self.extended = exact.to(self.extended.device)
        return self

    def observe(
        self, rest_BR: torch.Tensor, z_B: torch.Tensor, rest: Grid
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the model as observed [B, L] and where it is known, bool [B, L].

        A pixel whose line-spread kernel reaches beyond the rest-frame range is not known.
        """
        model, valid = redshift_and_resample(rest_BR, z_B, rest, self.extended)
        if self.subpixels > 1:
            valid = valid.unflatten(1, (-1, self.subpixels)).all(dim=2)
            model = model.unflatten(1, (-1, self.subpixels)).mean(dim=2) * valid
        if self.lsf is None:
            return model, valid
        kernel = (self.lsf / self.lsf.sum()).flip(0)[None, None].to(model.dtype)
        with torch.autocast(model.device.type, enabled=False):
            model = functional.conv1d(model[:, None], kernel)[:, 0]
        first, last = valid[:, : self.grid.size], valid[:, 2 * self.margin :]
        valid = first & last  # the range has no holes: its ends decide
        return model * valid, valid


def redshift_and_resample(
    rest_BR: torch.Tensor, z_B: torch.Tensor, rest: Grid, wavelength_L: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Interpolate (λ_rest (1 + z), x) linearly at the observed wavelengths.

    The interpolation does not conserve flux: the spectra carry no (1 + z) factor, as published.
    Positions are computed in float64, values in float32 (float64 for float64 input), also under
    autocast. Gradients flow to `rest_BR` only.

    Parameters
    ----------
    rest_BR : float [B, R]
        Rest-frame spectra.
    z_B : float [B]
        Redshifts, > −1.
    rest : Grid
        Linear grid of the R rest-frame pixels, Å.
    wavelength_L : float64 [L]
        Observed wavelengths, Å.

    Returns
    -------
    model_BL : float32 or float64 [B, L]
        0 outside the rest-frame range.
    valid_BL : bool [B, L]
        True inside the rest-frame range, ends included.

    Raises
    ------
    ValueError
        If the shapes or the kind of the grid do not fit.
    """
    if rest.kind != "linear":
        raise ValueError(f"rest: expected a linear grid, found {rest.kind!r}")
    if rest_BR.shape != (len(z_B), rest.size):
        raise ValueError(
            f"rest_BR: expected [{len(z_B)}, {rest.size}], found {tuple(rest_BR.shape)}"
        )
    scale_B1 = 1.0 / (rest.step * (1.0 + z_B.detach().double().reshape(-1, 1)))
    position_BL = torch.addcmul(
        wavelength_L.new_tensor(-rest.start / rest.step), wavelength_L[None], scale_B1
    )
    valid_BL = (position_BL >= -_EDGE) & (position_BL <= rest.size - 1 + _EDGE)
    left_BL = position_BL.clamp_(0, rest.size - 1).long().clamp_(max=rest.size - 2)
    values_BR = rest_BR if rest_BR.dtype == torch.float64 else rest_BR.float()
    weight_BL = position_BL.sub_(left_BL).to(values_BR.dtype)
    return _Interpolate.apply(values_BR, left_BL, weight_BL, valid_BL), valid_BL


class _Interpolate(torch.autograd.Function):
    """(1 − w) x[i] + w x[i + 1] where valid, else 0; keeps indices and weights, nothing else."""

    @staticmethod
    def forward(ctx, values_BR, left_BL, weight_BL, valid_BL):
        low = values_BR.gather(1, left_BL)
        high = values_BR[:, 1:].gather(1, left_BL)
        ctx.save_for_backward(left_BL, weight_BL, valid_BL)
        ctx.shape = values_BR.shape
        return low.lerp_(high, weight_BL).mul_(valid_BL)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BL):
        left_BL, weight_BL, valid_BL = ctx.saved_tensors
        grad_BL = grad_BL * valid_BL
        high = grad_BL * weight_BL
        grad_BR = grad_BL.new_zeros(ctx.shape)
        grad_BR[:, 1:].scatter_add_(1, left_BL, high)
        grad_BR.scatter_add_(1, left_BL, grad_BL.sub_(high))
        return grad_BR, None, None, None
