"""braai, the real/bogus network of the ZTF stream, as a reference: its Keras weights in torch.

Duev et al. 2019, MNRAS 489, 3582. Weights: https://github.com/dmitryduev/braai (MIT),
``braai_d6_m9.weights.h5``.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch
from torch import nn

_CHANNELS_LAST = (0, 2, 3, 1)


class Braai(nn.Module):
    """VGG6: two pairs of 3 × 3 convolutions, pooled by 2 and by 4, then 256 and 1 units."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.conv3, self.conv4 = nn.Conv2d(16, 32, 3), nn.Conv2d(32, 32, 3)
        self.fc_1, self.fc_out = nn.Linear(1152, 256), nn.Linear(256, 1)

    def forward(self, image_B3SS: torch.Tensor) -> torch.Tensor:
        """Return logits [B] of triplets as `transforms.alerts.triplet_input` makes them."""
        x = self.conv2(self.conv1(image_B3SS).relu()).relu()
        x = nn.functional.max_pool2d(x, 2)
        x = self.conv4(self.conv3(x).relu()).relu()
        x = nn.functional.max_pool2d(x, 4)
        x = x.permute(_CHANNELS_LAST).flatten(1)  # Keras flattens channels last
        return self.fc_out(self.fc_1(x).relu())[:, 0]


def load_braai(path: str | Path) -> Braai:
    """Return the network with the weights of a Keras file."""
    network, state = Braai(), {}
    with h5py.File(path) as file:
        for name, _ in network.named_children():
            kernel = np.asarray(file[f"{name}/{name}/kernel:0"])
            axes = (3, 2, 0, 1) if kernel.ndim == 4 else (1, 0)
            state[f"{name}.weight"] = torch.as_tensor(np.ascontiguousarray(kernel.transpose(axes)))
            state[f"{name}.bias"] = torch.as_tensor(np.asarray(file[f"{name}/{name}/bias:0"]))
    network.load_state_dict(state)
    return network.eval()


@torch.inference_mode()
def braai_scores(network: Braai, image_N3SS: np.ndarray, chunk: int = 64) -> np.ndarray:
    """Return P(real), float64 [N]."""
    parts = [network(torch.as_tensor(image_N3SS[i : i + chunk])).double().sigmoid().numpy()
             for i in range(0, len(image_N3SS), chunk)]  # fmt: skip
    return np.concatenate(parts)
