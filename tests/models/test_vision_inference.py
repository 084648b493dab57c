"""Fast forms of image networks: the same numbers, in fewer steps."""

import copy

import pytest
import torch
from tests.vision_networks import NATIVE, network_of, settled
from torch import nn

from skyray.models.vision_inference import bf16_support, optimised

torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", NATIVE)
def test_optimised_float32_is_the_same_network(architecture):
    network = settled(
        network_of(architecture, bands=3, outputs=2, metadata=4, metadata_layers=(8,), head=(16,))
    )
    before = copy.deepcopy(network.state_dict())
    size = network.image_size
    image, metadata = torch.rand(3, 3, size, size), torch.randn(3, 4)
    fast = optimised(network)
    with torch.no_grad():
        for ours, reference, tolerance in (
            (fast(image, metadata), network(image, metadata), 1e-5),
            (fast.features(image, metadata), network.features(image, metadata), 1e-5),
            (fast.from_base(fast.base(image), metadata), network(image, metadata), 1e-5),
            (fast.base(image), network.base(image), 3e-5),  # against their largest
        ):
            scale = max(1.0, float(reference.abs().max()))
            torch.testing.assert_close(ours / scale, reference / scale, rtol=0, atol=tolerance)
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} of the original changed"
    left = [name for name, m in fast.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert left == []


def test_what_others_read_is_not_merged():
    """A convolution whose output a shortcut reads too keeps its batch norm and activation apart."""

    class Forked(nn.Module):
        num_features = 4

        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.again, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(inplace=True)

        def forward(self, image):
            x = self.conv(image)
            y = self.again(self.norm(x))
            return (self.act(y) + x + y).mean(dim=(2, 3))  # y after the ReLU in place

    network = network_of("alert_cnn")
    torch.manual_seed(1)
    network.backbone, network.output = Forked(), nn.Linear(4, 1)
    network = settled(network)
    image = torch.rand(2, 3, 63, 63)
    fast = optimised(network)
    with torch.no_grad():
        torch.testing.assert_close(fast.base(image), network.base(image), rtol=1e-5, atol=1e-5)
    assert isinstance(fast.network.backbone.norm, nn.BatchNorm2d)
    assert isinstance(fast.network.backbone.act, nn.Identity)  # in place: all readers see the ReLU


def test_optimised_networks_do_not_train():
    fast = optimised(network_of("alert_cnn"))
    assert not any(module.training for module in fast.train().modules())
    assert not fast(torch.rand(1, 3, 63, 63)).requires_grad


@pytest.mark.parametrize("architecture", ["alert_cnn", "convnext_pico", "maxvit_tiny_rw_224"])
def test_bf16_stays_close(architecture):
    fast, reason = bf16_support()
    if not fast:
        pytest.skip(reason)
    network = settled(network_of(architecture, head=(8,), metadata=2))
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith(".gamma"):
                parameter.fill_(0.5)  # ConvNeXt's 1e-6 would hide the blocks
    half = optimised(network, "bf16")
    assert half.precision == "bf16"
    image = torch.rand(4, 3, network.image_size, network.image_size)
    metadata = torch.randn(4, 2)
    with torch.no_grad():
        exact, ours = network.base(image), half.base(image)
        error = (ours - exact).square().mean().sqrt() / exact.square().mean().sqrt()
        assert 0 < error < 0.02
        assert ours.dtype == half(image, metadata).dtype == torch.float32
        torch.testing.assert_close(  # head and metadata branch are not rounded
            half.from_base(exact, metadata), network.from_base(exact, metadata), rtol=0, atol=0
        )


def test_without_bf16_instructions_float32_is_used(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    network = network_of("alert_cnn").eval()
    fast = optimised(network, "bf16")
    assert fast.precision == "float32"
    assert "neither" in fast.reason
    image = torch.rand(1, 3, 63, 63)
    with torch.no_grad():
        torch.testing.assert_close(fast(image), network(image), rtol=1e-5, atol=1e-5)
