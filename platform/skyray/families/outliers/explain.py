"""Why an object is strange: what the encoder attends to, and where the reconstruction fails.

Two views. `attention_map` (Grad-FAM) asks which wavelengths a score hangs on: the gradient of the
score with respect to the encoder's attention, times the attention. `chi2_by_range` splits χ² into
named ranges of rest wavelength; the parts add up to the whole.

Shape suffixes: B batch, L observed pixels, C channels, T positions left by the pooling, S latents,
K ranges.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.axes import Axes

from skyray.analysis import plots
from skyray.pages.svg import robust_limits

Target = int | Callable[[torch.Tensor], torch.Tensor]
Ranges = Mapping[str, Sequence[tuple[float, float]]]

# Rest wavelength in vacuum, Å: [low, high) of every piece. Pieces must not overlap.
RANGES: Ranges = {
    "blue continuum": ((0.0, 3800.0),),
    "4000 Å break": ((3800.0, 4200.0),),
    "Hβ, [O III]": ((4800.0, 5070.0),),
    "Na D": ((5860.0, 5930.0),),
    "Hα, [N II], [S II]": ((6470.0, 6790.0),),
    "TiO bands": ((5935.0, 5997.0), (6190.0, 6275.0), (7050.0, 7400.0)),
    "red end": ((8400.0, math.inf),),
}
ELSEWHERE = "elsewhere"


class AttentionEncoder(Protocol):
    """What `attention_map` needs of an encoder; `skyray.models.spender.SpectrumEncoder` has it."""

    def attend(self, y_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and attention, both [B, C, T]."""

    def head(self, values: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return latents [B, S]."""


class ChiSquareParts(NamedTuple):
    """χ² by range: names [K], χ² and number of pixels [B, K]; the last range is `ELSEWHERE`."""

    names: tuple[str, ...]
    chi2_BK: np.ndarray
    pixels_BK: np.ndarray


def attention_map(encoder: AttentionEncoder, y_BL: torch.Tensor, target: Target) -> torch.Tensor:
    """Return how much each pixel's attention adds to `target`, float32 [B, L].

    Σ_c ∂target/∂a_ct · a_ct at every position t, with values h and attention a; as the features
    are f_c = Σ_t h_ct a_ct, a position's entry is its first-order share Σ_c ∂target/∂f_c h_ct a_ct,
    positive where it raises the target. Positions are brought to pixels by linear interpolation
    between their centres, constant beyond the first and last. A position's features still see as
    far as the kernels reach (10 positions to each side at DESI size), so the map tells where the
    encoder looks, not single pixels.

    Parameters
    ----------
    encoder : AttentionEncoder
        Its ``pools`` give the spacing of positions; without them they share the pixels evenly.
    y_BL : tensor [B, L]
        As the encoder is fed.
    target : int or callable
        A latent's index, or a function of latents [B, S] → [B], such as −log p. Rows must not
        depend on each other.

    Raises
    ------
    ValueError
        If the target is not one number a row.
    """
    with torch.no_grad():
        values, attention = encoder.attend(y_BL)
    with torch.enable_grad():
        attention = attention.detach().clone().requires_grad_()
        latent = encoder.head(values.detach(), attention)
        score = latent[:, target] if isinstance(target, int) else target(latent)
        if score.shape != (len(y_BL),):
            raise ValueError(
                f"target: expected one number a row, shape ({len(y_BL)},), "
                f"found {tuple(score.shape)}"
            )
        (gradient,) = torch.autograd.grad(score.sum(), attention)
    share_BT = (gradient * attention.detach()).sum(dim=1).float()
    return _to_pixels(share_BT, y_BL.shape[1], getattr(encoder, "pools", None))


def _to_pixels(share_BT: torch.Tensor, pixels: int, pools: Sequence[int] | None) -> torch.Tensor:
    """Interpolate positions to pixels; padded pooling puts position t's centre at t · stride."""
    positions = share_BT.shape[1]
    pixel = torch.arange(pixels, dtype=torch.float64, device=share_BT.device)
    even = (pixel + 0.5) * positions / pixels - 0.5
    at = even if pools is None else pixel / math.prod(pools)
    at = at.clamp(0.0, positions - 1.0)
    left = at.floor().long().clamp(max=max(positions - 2, 0))
    right = (left + 1).clamp(max=positions - 1)
    weight = (at - left).to(share_BT.dtype)
    return torch.lerp(share_BT[:, left], share_BT[:, right], weight)


def chi2_by_range(
    y_BL: np.ndarray,
    w_BL: np.ndarray,
    model_BL: np.ndarray,
    valid_BL: np.ndarray,
    wavelength_rest_BL: np.ndarray,
    ranges: Ranges = RANGES,
) -> ChiSquareParts:
    """Split χ² = Σ w (y − model)² over valid pixels into ranges of rest wavelength.

    Parameters
    ----------
    y_BL, w_BL, model_BL : float [B, L]
        Flux, inverse variance (0: not used) and reconstruction, in one unit.
    valid_BL : bool [B, L]
        Pixels the model covers.
    wavelength_rest_BL : float [B, L] or [L]
        Å in vacuum.
    ranges : mapping
        Name → pieces [low, high). What they leave over is counted as `ELSEWHERE`, so that the
        parts add up to the whole.

    Raises
    ------
    ValueError
        If pieces overlap, or a range is called `ELSEWHERE`.
    """
    edges, owner = _pieces(ranges)
    y, w, model = (np.atleast_2d(np.asarray(v, np.float64)) for v in (y_BL, w_BL, model_BL))
    used = np.broadcast_to(np.asarray(valid_BL, bool), y.shape) & (w > 0)
    used = used & np.isfinite(y) & np.isfinite(model)
    rest = np.broadcast_to(np.asarray(wavelength_rest_BL, np.float64), y.shape)
    term = np.where(used, w * np.square(np.where(used, y - model, 0.0)), 0.0)
    which = owner[np.searchsorted(edges, rest, side="right")]
    names = (*ranges, ELSEWHERE)
    cell = (np.arange(len(y))[:, None] * len(names) + which).ravel()
    size = len(y) * len(names)
    chi2 = np.bincount(cell, term.ravel(), size).reshape(len(y), len(names))
    pixels = np.bincount(cell, used.ravel(), size).reshape(len(y), len(names))
    return ChiSquareParts(names, chi2, pixels.astype(np.int64))


def _pieces(ranges: Ranges) -> tuple[np.ndarray, np.ndarray]:
    """Return all edges, ascending, and which range lies below, between and above them."""
    if ELSEWHERE in ranges:
        raise ValueError(f"ranges: {ELSEWHERE!r} is kept for what the others leave over")
    pieces = sorted(
        (low, high, number)
        for number, parts in enumerate(ranges.values())
        for low, high in parts
    )  # fmt: skip
    edges, owner, last = [], [len(ranges)], -math.inf
    for low, high, number in pieces:
        if low < last or not low < high:
            raise ValueError(f"ranges: [{low:g}, {high:g}) is empty or overlaps another")
        edges += [low, high]
        owner += [number, len(ranges)]
        last = high
    return np.array(edges), np.array(owner)


def explain_figure(
    path: Path,
    wavelength_rest_L: np.ndarray,
    y_L: np.ndarray,
    w_L: np.ndarray,
    model_L: np.ndarray,
    valid_L: np.ndarray,
    attention_L: np.ndarray,
    title: str = "",
    ranges: Ranges = RANGES,
) -> Path:
    """Draw one object: spectrum coloured by its attention map, and reduced χ² of every range.

    Arguments as for `attention_map` and `chi2_by_range`, of one object. Returns the path.
    """
    rest, flux = np.asarray(wavelength_rest_L, np.float64), np.asarray(y_L, np.float64)
    model, used = np.asarray(model_L, np.float64), (np.asarray(w_L) > 0) & np.asarray(valid_L, bool)
    parts = chi2_by_range(flux, w_L, model, valid_L, rest, ranges)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(
            3, 1, width=10.5, height=2.5, gridspec_kw={"height_ratios": [2.4, 1.0, 1.6]}
        )
        upper, middle, lower = axes[:, 0]
        _draw_attention(upper, middle, rest, flux, model, used, np.asarray(attention_L, np.float64))
        _draw_parts(lower, parts)
        upper.set_title(title)
        return plots.save(figure, path)


def _draw_attention(upper: Axes, middle: Axes, rest, flux, model, used, attention) -> None:
    scale = np.nanmax(np.abs(attention)) if np.isfinite(attention).any() else 0.0
    shown = attention / scale if scale > 0 else np.zeros_like(attention)
    low, high = robust_limits(flux[used], model[used], share=0.2)
    upper.pcolormesh(
        rest, [low, high], np.vstack([shown, shown]), cmap="PuOr_r", vmin=-2.4, vmax=2.4,
        shading="nearest", rasterized=True,
    )  # fmt: skip
    upper.plot(rest, np.where(used, flux, np.nan), color=plots.INK, linewidth=0.5, label="flux")
    upper.plot(rest, model, color=plots.RED, linewidth=1.1, label="model")
    upper.set(xlim=(rest[0], rest[-1]), ylim=(low, high), ylabel="normalised flux")
    upper.legend(loc="upper right", ncols=2, fontsize=8)
    middle.axhline(0.0, color=plots.SOFT, linewidth=0.8)
    for sign, color, label in ((1, plots.ORANGE, "raises"), (-1, plots.PURPLE, "lowers")):
        part = np.where(sign * shown > 0, shown, 0.0)
        middle.fill_between(rest, 0, part, color=color, linewidth=0, label=f"{label} the score")
    middle.set(xlim=(rest[0], rest[-1]), ylim=(-1.05, 1.05), ylabel="attention")
    middle.set_xlabel("rest wavelength, Å (vacuum)")
    middle.legend(loc="upper right", ncols=2, fontsize=8)


def _draw_parts(axis: Axes, parts: ChiSquareParts) -> None:
    chi2, pixels = parts.chi2_BK[0], parts.pixels_BK[0]
    reduced = np.divide(chi2, pixels, out=np.full(chi2.shape, np.nan), where=pixels > 0)
    spread = np.sqrt(np.divide(2.0, pixels, out=np.full(chi2.shape, np.nan), where=pixels > 0))
    at = np.arange(len(parts.names))
    strange = np.nan_to_num(reduced - 1.0) > 4 * np.nan_to_num(spread)
    seen = pixels > 0  # not-a-number bars would upset the layout
    color = np.where(strange, plots.RED, plots.SKY)[seen]
    axis.bar(at[seen], reduced[seen], color=color, width=0.65)
    axis.axhline(1.0, color=plots.SOFT, linewidth=0.9, linestyle="--")
    axis.errorbar(at[seen], np.ones(seen.sum()), 2 * spread[seen], fmt="none", ecolor=plots.INK,
                  capsize=4)  # fmt: skip
    for i, value in enumerate(reduced):
        share = (
            f"{100 * chi2[i] / max(chi2.sum(), 1e-300):.0f} % of χ²" if pixels[i] else "not covered"
        )
        top = np.nanmax([value, 1.0 + 2.0 * spread[i], 0.0])
        axis.annotate(share, (i, top), (0, 3), textcoords="offset points", ha="center",
                      fontsize=8, in_layout=False)  # fmt: skip
    axis.set_xticks(at, parts.names, fontsize=9)
    axis.set_title("reduced χ² by range, with 2σ of noise about 1", fontsize=10)
    axis.set(xlim=(-0.6, len(at) - 0.4), ylim=(0, 1.25 * np.nanmax([1.6, *reduced])))
    axis.grid(axis="x", visible=False)
