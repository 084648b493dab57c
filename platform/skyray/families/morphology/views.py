"""Images as the network takes them, and the views of one image that it answers with."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def unit(image_B3SS: torch.Tensor) -> torch.Tensor:
    """Return 8-bit images as float32 in 0–1."""
    return image_B3SS.float() / 255.0


def views_of(image_B3SS: torch.Tensor, views: int) -> Iterator[torch.Tensor]:
    """Yield the image, or with 8 `views` its flips and quarter turns."""
    turned = image_B3SS
    for _ in range(4 if views == 8 else 1):
        yield turned
        if views == 8:
            yield turned.flip(-1)
        turned = turned.flip(-1).transpose(-2, -1)  # as rot90, which ONNX has not got
