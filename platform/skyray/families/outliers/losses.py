"""SPENDER's losses: fidelity, similarity and consistency, and the schedule of the slope k.

Sources: Melchior et al. 2023 (SPENDER I), Liang et al. 2023a (SPENDER II, the two losses on
latents), Liang et al. 2023b (DESI BGS outliers), and the released training code where the papers
are silent. Each loss on latents exists in two scales:

- ``published``: dissimilarities as they come, of spectra normalised by their median and of latents
  per dimension. The loss then depends on the units the latents happen to have.
- ``relative`` (as in spender 0.3): dissimilarities in units of their mean over the batch, which no
  rescaling of the latents can lower.

All sums are float32, whatever the autocast state: differences of near-equal spectra do not survive
bfloat16.

Shape suffixes: B batch, L observed pixels, R rest-frame pixels, S latents.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

Scale = Literal["published", "relative"]
Reduction = Literal["sum", "mean", "none"]
Schedule = Literal["desi", "sdss", "constant", "ramp"]

# Offset of both sigmoids: a pair that matches costs 2σ(−2.5) = 0.15, one that does not costs 1.
OFFSET = 2.5
DESI_TOLERANCE, SDSS_TOLERANCE = 0.25, 0.01
# Keeps the relative scale defined when all rows of a batch are equal.
_SMALLEST = 1e-30
# Epochs without similarity at the end of the published training.
_QUIET_EPOCHS = 10
_SLOPE_STEP = 0.1
_TEETH = {"desi": 20, "sdss": 100}


def _exact(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors in float32 at least (float64 stays, for gradient checks)."""
    return tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)


def _no_autocast(tensor: torch.Tensor) -> torch.autocast:
    return torch.autocast(device_type=tensor.device.type, enabled=False)


def fidelity(
    y_BL: torch.Tensor,
    w_BL: torch.Tensor,
    model_BL: torch.Tensor,
    valid_BL: torch.Tensor,
    reduce: Reduction = "sum",
) -> torch.Tensor:
    """Return ½ Σ_λ w (y − model)² / L of each spectrum, reduced over the batch.

    Parameters
    ----------
    y_BL : float [B, L]
        Normalised flux. Values where w = 0 do not matter, NaN included.
    w_BL : float [B, L]
        Inverse variance of `y_BL`, 0 where unmeasured or masked.
    model_BL : float [B, L]
        Reconstruction on the observed pixels.
    valid_BL : bool [B, L]
        Where the model is defined (inside the redshifted rest-frame range).
    reduce : {'sum', 'mean', 'none'}
        The released code sums over the batch, eq. 1 of the BGS paper is the mean.

    Returns
    -------
    float32 scalar, or [B] for 'none'
        L counts all pixels, masked ones too: with pure noise the value is half the share of used
        pixels (0.386 in the paper, with about a quarter of the pixels masked).

    Raises
    ------
    ValueError
        If the shapes differ or `reduce` is unknown.
    """
    if not y_BL.shape == w_BL.shape == model_BL.shape == valid_BL.shape:
        shapes = [tuple(t.shape) for t in (y_BL, w_BL, model_BL, valid_BL)]
        raise ValueError(f"fidelity: expected four tensors of one shape [B, L], found {shapes}")
    with _no_autocast(y_BL):
        y, w, model = _exact(y_BL, w_BL, model_BL)
        used = valid_BL.bool() & (w > 0)
        residual = torch.where(used, y - model, 0.0)
        loss_B = 0.5 * (w * residual.square()).sum(dim=1) / y.shape[1]
        return _reduced(loss_B, reduce)


def _reduced(loss_B: torch.Tensor, reduce: Reduction) -> torch.Tensor:
    if reduce == "none":
        return loss_B
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce: expected 'sum', 'mean' or 'none', found {reduce!r}")
    return loss_B.sum() if reduce == "sum" else loss_B.mean()


def similarity_weight(
    wavelength_R: torch.Tensor,
    amplitude: float = 30.0,
    centre: float = 5000.0,
    width: float = 2000.0,
) -> torch.Tensor:
    """Return W = A exp[−(½ (λ − c) / width)²], float32 [R].

    The factor ½ is squared, as in the released code: the Gaussian's σ is √2 · `width`. DESI uses
    the defaults (Å); SDSS amplitude 20 and width 1000. The relative scale cancels the amplitude.
    """
    x = torch.as_tensor(wavelength_R, dtype=torch.float64)
    return (amplitude * torch.exp(-((0.5 * (x - centre) / width) ** 2))).float()


def rest_median(
    rest_BR: torch.Tensor, wavelength_R: torch.Tensor, low: float = 4000.0, high: float = 7000.0
) -> torch.Tensor:
    """Return each rest-frame spectrum's median over low < λ < high (Å), float32 [B, 1].

    The lower of the two middle values where the number of pixels is even (torch's median).

    Raises
    ------
    ValueError
        If no pixel lies in the window.
    """
    wavelength = torch.as_tensor(wavelength_R, device=rest_BR.device)
    inside = (wavelength > low) & (wavelength < high)
    if not bool(inside.any()):
        raise ValueError(f"rest_median: no pixel of the rest grid between {low} and {high} Å")
    (rest,) = _exact(rest_BR)
    return rest[:, inside].median(dim=1, keepdim=True).values


def similarity(
    latent_BS: torch.Tensor,
    rest_BR: torch.Tensor,
    weight_R: torch.Tensor,
    k: float | torch.Tensor,
    scale: Scale = "published",
) -> torch.Tensor:
    """Return the similarity loss: pairs near in latents should be near in spectrum, and far far.

    D_ij = (1/R) Σ W (x_i − x_j)² between spectra, d_ij = |s_i − s_j|² / S between latents, and
    L = (1/B) Σ_{i≠j} [σ(k(d − D) − 2.5) + σ(−k(d − D) − 2.5)]. Both distance matrices come from
    Gram matrices, so memory is B × R + B × B instead of B × B × R.

    At k = 0 the loss is a constant without gradient; see `k_schedule`.

    Parameters
    ----------
    latent_BS : float [B, S]
    rest_BR : float [B, R]
        Decoded rest-frame spectra divided by `rest_median`.
    weight_R : float [R]
        `similarity_weight` of the rest-frame grid.
    k : float
        Slope.
    scale : {'published', 'relative'}
        'relative' divides D and d by their mean over distinct pairs first (spender 0.3; the mean is
        not detached, so that the loss does not change with the size of the latents).

    Returns
    -------
    float32 scalar
        0 for a batch of one.

    Raises
    ------
    ValueError
        If the shapes do not fit or `scale` is unknown.
    """
    _check_pairs(latent_BS, rest_BR, weight_R, scale)
    with _no_autocast(rest_BR):
        latent, rest, weight = _exact(latent_BS, rest_BR, weight_R)
        d_BB = _square_distances(latent) / latent.shape[1]
        D_BB = _square_distances(rest * (weight / rest.shape[1]).sqrt())
        if scale == "relative":
            d_BB, D_BB = _in_units_of_mean(d_BB), _in_units_of_mean(D_BB)
        kx_BB = k * (d_BB - D_BB)
        pair_BB = torch.sigmoid(kx_BB - OFFSET) + torch.sigmoid(-kx_BB - OFFSET)
        others = 1.0 - torch.eye(len(latent), dtype=pair_BB.dtype, device=pair_BB.device)
        return (pair_BB * others).sum() / len(latent)


def _check_pairs(latent: torch.Tensor, rest: torch.Tensor, weight: torch.Tensor, scale: str):
    if latent.ndim != 2 or rest.ndim != 2 or len(latent) != len(rest):
        found = tuple(latent.shape), tuple(rest.shape)
        raise ValueError(f"similarity: expected latents [B, S] and spectra [B, R], found {found}")
    if weight.shape != rest.shape[1:]:
        found = tuple(weight.shape)
        raise ValueError(f"similarity: expected weight [{rest.shape[1]}], found {found}")
    _check_scale(scale)


def _check_scale(scale: str) -> None:
    if scale not in ("published", "relative"):
        raise ValueError(f"scale: expected 'published' or 'relative', found {scale!r}")


def _square_distances(x_BD: torch.Tensor) -> torch.Tensor:
    """Return |x_i − x_j|² for all pairs, ≥ 0, from the Gram matrix of the centred rows, [B, B].

    Centring removes what all rows share, which would otherwise drown the differences in rounding.
    The centre is detached: distances do not depend on it, so its gradient is zero anyway.
    """
    x = x_BD - x_BD.detach().mean(dim=0)
    gram_BB = x @ x.T
    square_B = x.square().sum(dim=1)
    distance_BB = (square_B[:, None] + square_B[None, :] - 2.0 * gram_BB).clamp_min(0.0)
    diagonal = torch.eye(len(x), dtype=torch.bool, device=x.device)
    return distance_BB.masked_fill(diagonal, 0.0)


def _in_units_of_mean(distance_BB: torch.Tensor) -> torch.Tensor:
    pairs = max(len(distance_BB) * (len(distance_BB) - 1), 1)
    return distance_BB / (distance_BB.sum() / pairs).clamp_min(_SMALLEST)


def consistency(
    latent_BS: torch.Tensor,
    augmented_BS: torch.Tensor,
    scale: Scale = "published",
    tolerance: float = DESI_TOLERANCE,
) -> torch.Tensor:
    """Return Σ_batch [σ(|s − s_aug|² / (tolerance · S)) − ½]: 0 where augmentation changes nothing.

    Parameters
    ----------
    latent_BS, augmented_BS : float [B, S]
        Latents of the spectra and of their augmented copies.
    scale : {'published', 'relative'}
        'relative' replaces the tolerance by the batch mean of the latents' variance per dimension
        (spender 0.3; not detached, so that shrinking all latents gains nothing).
    tolerance : float
        Squared distance per dimension that counts as one, 'published' only: .25 for DESI, .01 for
        SDSS. The DESI code multiplies this loss by k, which is left to the caller.

    Returns
    -------
    float32 scalar
        In the relative scale 0 for a batch of one, which has no variance.

    Raises
    ------
    ValueError
        If the shapes differ, or on an unknown scale or a tolerance ≤ 0.
    """
    _check_scale(scale)
    if latent_BS.ndim != 2 or latent_BS.shape != augmented_BS.shape:
        found = tuple(latent_BS.shape), tuple(augmented_BS.shape)
        raise ValueError(f"consistency: expected two tensors [B, S], found {found}")
    if tolerance <= 0:
        raise ValueError(f"tolerance: expected > 0, found {tolerance}")
    with _no_autocast(latent_BS):
        latent, augmented = _exact(latent_BS, augmented_BS)
        distance_B = (augmented - latent).square().mean(dim=1)
        if scale == "published":
            unit = tolerance
        elif len(latent) < 2:
            return 0.0 * distance_B.sum()
        else:
            unit = latent.var(dim=0).mean().clamp_min(_SMALLEST)
        return (torch.sigmoid(distance_B / unit) - 0.5).sum()


def k_schedule(
    epoch: int, epochs: int, kind: Schedule = "desi", maximum: float | None = None
) -> float:
    """Return the slope k of an epoch (counted from 0) of `epochs`.

    'desi'
        As published: a sawtooth 0, .1 … 1.9 of 20 epochs, and 0 in the last 10 epochs. At k = 0
        the similarity loss, and the consistency loss multiplied by k, have no gradient: one epoch
        in 20 and the last 10 train fidelity alone, and the latents that are kept have drifted.
    'sdss'
        The same with teeth of 100 epochs, up to 9.9.
    'constant'
        `maximum` throughout.
    'ramp'
        The corrected schedule: grows linearly from `maximum`/n over the first n = half of the
        epochs (rounded up) and stays at `maximum`. Never 0, so no epoch is without similarity; the
        model that is kept was shaped by the full losses; and epochs of the second half can be
        compared, because their loss is the same function.

    Parameters
    ----------
    maximum : float, optional
        For 'constant' and 'ramp'; default 1.9, the largest DESI slope. spender 0.3 uses 5 with its
        relative scale. The published kinds refuse it.

    Raises
    ------
    ValueError
        On an unknown kind, an epoch outside 0 … epochs − 1, or a `maximum` that does not apply.
    """
    if not 0 <= epoch < epochs:
        raise ValueError(f"epoch: expected 0 ≤ epoch < {epochs}, found {epoch}")
    if kind in _TEETH:
        if maximum is not None:
            raise ValueError(f"maximum: the published schedule {kind!r} has its own")
        quiet = epochs - epoch <= _QUIET_EPOCHS
        return 0.0 if quiet else float(np.round(_SLOPE_STEP * (epoch % _TEETH[kind]), 10))
    top = 1.9 if maximum is None else float(maximum)
    if top <= 0:
        raise ValueError(f"maximum: expected > 0, found {maximum}")
    if kind == "constant":
        return top
    if kind == "ramp":
        rising = (epochs + 1) // 2
        return top * min(1.0, (epoch + 1) / rising)
    raise ValueError(f"kind: expected 'desi', 'sdss', 'constant' or 'ramp', found {kind!r}")
