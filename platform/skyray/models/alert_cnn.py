"""The custom convolutional network of BTSbot, for triplets of alert cutouts.

Rehemtulla et al. 2024, "The ZTF Bright Transient Survey. III. BTSbot"; layers and
sizes of the released production configuration. With 25 features, a metadata branch of (128,
128), one hidden layer of 8 and one output, the whole network has 227,811 parameters.
"""

from __future__ import annotations

import torch
from torch import nn

KERNEL = 5
CHANNELS = (32, 64)
POOLS = (2, 4)


class AlertCNN(nn.Module):
    """Two pairs of convolutions (same padding, ReLU), max-pooled by 2 and by 4, then flattened.

    The sub-module's name and order are those of the released state dict, which therefore loads.

    Parameters
    ----------
    bands : int
        Input images: 3 for science, template, difference.
    image_size : int
        Pixels a side; 63 for ZTF.
    dropout : tuple of float
        Probability to drop a whole channel after each pooling.
    channels : tuple of int
        Channels of each pair of convolutions.

    Raises
    ------
    ValueError
        If the image is smaller than the 8 pixels that pooling needs.
    """

    def __init__(
        self,
        bands: int = 3,
        image_size: int = 63,
        dropout: tuple[float, float] = (0.5, 0.55),
        channels: tuple[int, int] = CHANNELS,
    ):
        super().__init__()
        side = image_size
        layers: list[nn.Module] = []
        for width, pool, probability in zip(channels, POOLS, dropout, strict=True):
            layers += [nn.Conv2d(bands, width, KERNEL, padding=KERNEL // 2), nn.ReLU()]
            layers += [nn.Conv2d(width, width, KERNEL, padding=KERNEL // 2), nn.ReLU()]
            layers += [nn.MaxPool2d(pool), nn.Dropout2d(probability)]
            bands, side = width, side // pool
        if side < 1:
            raise ValueError(f"image_size: alert_cnn needs 8 pixels or more, found {image_size}")
        self.conv_layers = nn.Sequential(*layers, nn.Flatten())
        self.num_features = channels[-1] * side**2

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return flattened features [B, F] of images [B, bands, H, W]."""
        return self.conv_layers(image)
