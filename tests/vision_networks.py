"""Small image networks that tests of the vision models share."""

from __future__ import annotations

import torch
from torch import nn

from skyray.models.vision import VisionConfig, VisionNetwork

# Smallest images that pass every architecture, and a size each takes natively.
NATIVE = {
    "convnext_pico": 63,
    "maxvit_tiny_rw_224": 64,
    "legacy_xception": 75,
    "efficientnet_b0": 50,
    "tf_efficientnet_lite0": 64,
    "alert_cnn": 63,
}


def network_of(architecture: str, bands: int = 3, outputs: int = 1, seed: int = 0, **config):
    size = config.pop("image_size", NATIVE.get(architecture, 64))
    torch.manual_seed(seed)
    return VisionNetwork(VisionConfig(architecture=architecture, **config), bands, outputs, size)


def settled(network: VisionNetwork) -> VisionNetwork:
    """Return the network with batch norms that do something: uneven scales, moved statistics."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.5
            nn.init.uniform_(module.weight, 0.8, 1.2, generator)
            nn.init.uniform_(module.bias, -0.2, 0.2, generator)
    network.train()
    with torch.no_grad():
        network.base(torch.rand(4, network.bands, *(network.image_size,) * 2))
    return network.eval()
