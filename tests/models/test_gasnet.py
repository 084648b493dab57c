"""GaSNet's network against the paper's parameter counts and an independent 1-D build of it."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from skyray.models.gasnet import WIDTHS, GasNet, downsampled, fold_batch_norm


def trainable(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def with_statistics(network: nn.Module) -> int:
    running = [b for name, b in network.named_buffers() if "running" in name]
    return trainable(network) + sum(buffer.numel() for buffer in running)


class ReferenceBlock(nn.Module):
    """The published block written with Conv1d, from the paper's figure 10b alone."""

    def __init__(self, channels_in, channels):
        super().__init__()
        self.first = nn.Conv1d(channels_in, channels, 5, padding="same")
        self.norm_first = nn.BatchNorm1d(channels)
        self.second = nn.Conv1d(channels, channels, 5, stride=3)
        self.norm_second = nn.BatchNorm1d(channels)
        self.short = nn.Conv1d(channels_in, channels, 5, stride=3)

    def forward(self, x):
        y = self.norm_first(self.first(x)).relu()
        y = self.norm_second(self.second(y)).relu()
        y = functional.pad(y, (2, 2), value=float("-inf"))
        return functional.max_pool1d(y, 5, stride=1) + self.short(x)


def reference_of(network: GasNet) -> nn.Module:
    blocks, channels_in = [], 1
    for ours, channels in zip(network.blocks, WIDTHS, strict=True):
        block = ReferenceBlock(channels_in, channels)
        pairs = [
            (ours.conv1, block.first),
            (ours.conv2, block.second),
            (ours.shortcut, block.short),
        ]
        for theirs, mine in pairs:
            mine.weight.data.copy_(theirs.weight.data[:, :, 0])
            mine.bias.data.copy_(theirs.bias.data)
        block.norm_first.load_state_dict(ours.norm1.state_dict())
        block.norm_second.load_state_dict(ours.norm2.state_dict())
        blocks.append(block)
        channels_in = channels
    return nn.Sequential(
        *blocks, nn.Flatten(), network.dropout, network.hidden, nn.ReLU(), network.head
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    network = GasNet(5001, 13)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(std=0.1)
    return network.eval()


def test_parameter_count_is_the_published_one():
    network = GasNet(5001, 1)
    assert trainable(network) == 4_156_209
    assert with_statistics(network) == 4_160_241


def test_parameter_count_of_the_released_size():
    assert with_statistics(GasNet(3600, 13)) == 3_901_181


def test_more_classes_change_only_the_last_layer():
    small, large = GasNet(5001, 1), GasNet(5001, 13)
    assert trainable(large) - trainable(small) == 12 * (256 + 1)


@torch.no_grad()
def test_agrees_with_an_independent_build(network):
    x = torch.randn(4, 5001)
    expected = reference_of(network).eval()(x[:, None])
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_folded_batch_norm_changes_nothing(network):
    x = torch.randn(4, 5001)
    torch.testing.assert_close(fold_batch_norm(network)(x), network(x), rtol=1e-4, atol=1e-4)


def test_published_weights_are_drawn_from_a_narrow_gaussian():
    torch.manual_seed(0)
    layers = [m for m in GasNet(3600, 13, init="published").modules() if hasattr(m, "in_features")]
    weights = torch.cat([layer.weight.flatten() for layer in layers])
    assert weights.std().item() == pytest.approx(1e-3, rel=0.01)


def test_corrected_start_keeps_the_signal_alive():
    torch.manual_seed(0)
    x = functional.normalize(torch.randn(32, 3600)) * 60
    with torch.no_grad():
        spread = GasNet(3600, 13).train().features(x).std().item()
    assert 0.1 < spread < 10


def test_length_of_every_block():
    lengths, pixels = [], 5001
    for _ in WIDTHS:
        pixels = downsampled(pixels)
        lengths.append(pixels)
    assert lengths == [1666, 554, 184, 60, 19, 5]


def test_refuses_spectra_that_are_too_short():
    with pytest.raises(ValueError, match="300 are too few for 6 blocks"):
        GasNet(300, 1)


def test_refuses_another_length_than_it_was_built_for(network):
    with pytest.raises(ValueError, match=r"expected spectra \[B, 5001\]"):
        network(torch.randn(2, 5000))
