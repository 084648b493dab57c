"""Image networks against timm's own, their metadata branch and freezing."""

import numpy as np
import pytest
import timm
import torch
from tests.vision_networks import NATIVE, network_of
from torch import nn

from skyray.config import ConfigError
from skyray.models.vision import MetadataNorm, unfreeze_from

torch.set_num_threads(1)

# Published sizes, in millions, without classifier: timm's tables minus width × 1000 + 1000.
SIZES = {
    "convnext_pico": (9.05, 512),
    "maxvit_tiny_rw_224": (29.06, 512),
    "legacy_xception": (22.86, 2048),
    "efficientnet_b0": (5.29, 1280),
    "tf_efficientnet_lite0": (4.65, 1280),
}


@pytest.mark.parametrize("architecture", SIZES)
def test_parameter_counts_are_the_published_ones(architecture):
    millions, width = SIZES[architecture]
    with torch.device("meta"):  # MaxViT's position tables grow with the image size
        network = network_of(architecture, image_size=224)
    backbone = sum(p.numel() for p in network.backbone.parameters())
    assert network.base_width == width
    assert (backbone + 1000 * (width + 1)) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("architecture", ["convnext_pico", "maxvit_tiny_rw_224", "efficientnet_b0"])
def test_base_is_timms_own_forward(architecture):
    size = NATIVE[architecture]
    network = network_of(architecture, bands=4).eval()
    options = {"img_size": size} if architecture.startswith("maxvit") else {}
    reference = timm.create_model(architecture, num_classes=0, in_chans=4, **options).eval()
    reference.load_state_dict(network.backbone.state_dict())
    reference.to(memory_format=torch.channels_last)
    image = torch.rand(2, 4, size, size)
    with torch.no_grad():
        torch.testing.assert_close(network.base(image), reference(image), rtol=0, atol=0)


def test_same_seed_same_network():
    first, second, third = (network_of("convnext_pico", seed=seed) for seed in (3, 3, 4))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    assert not torch.equal(first.output.weight, third.output.weight)


def test_convnext_keeps_its_head_norm_beside_metadata():
    network = network_of("convnext_pico", metadata=25, metadata_layers=(16,), head=(8,)).eval()
    assert "backbone.head.norm.weight" in dict(network.named_parameters())
    with torch.no_grad():
        base = network.base(100 * torch.rand(3, 3, 63, 63))
    # A LayerNorm with its initial weight 1 and bias 0: mean 0 and variance 1 for each image.
    torch.testing.assert_close(base.mean(dim=1), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(base.var(dim=1, correction=0), torch.ones(3), atol=1e-3, rtol=0)


def test_images_are_resized_inside_the_network():
    grown = network_of("convnext_pico", image_size=32, input_size=64).eval()
    image = torch.rand(1, 3, 32, 32)
    enlarged = nn.functional.interpolate(image, (64, 64), mode="bilinear", align_corners=False)
    torch.testing.assert_close(grown.prepare(image), enlarged)
    shrunk = network_of("alert_cnn", image_size=64, input_size=32)
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1.0  # shrinking without a filter would keep or lose them
    assert (shrunk.prepare(stripes)[..., 2:-2] - 0.5).abs().max() < 0.01


def test_model_statistics_normalise_any_number_of_bands():
    network = network_of("efficientnet_b0", normalise="model")
    image = torch.full((1, 3, 50, 50), 0.5)
    expected = [(0.5 - m) / s for m, s in zip((0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                                              strict=True)]  # fmt: skip
    np.testing.assert_allclose(network.prepare(image)[0, :, 0, 0], expected, rtol=1e-5)
    five = network_of("legacy_xception", bands=5, normalise="model")
    assert five.prepare(torch.ones(1, 5, 75, 75)).unique().tolist() == [1.0]  # ±1
    assert not [name for name in network.state_dict() if name in ("mean", "std")]
    with pytest.raises(ConfigError, match="alert_cnn"):
        network_of("alert_cnn", normalise="model")


def test_parts_add_up_to_the_whole():
    network = network_of("alert_cnn", metadata=5, metadata_layers=(7, 6), head=(9, 4), outputs=3)
    network.eval()
    image, metadata = torch.rand(4, 3, 63, 63), torch.randn(4, 5)
    base, features = network.base(image), network.features(image, metadata)
    logits = network(image, metadata)
    assert (base.shape, features.shape, logits.shape) == ((4, 3136), (4, 4), (4, 3))
    torch.testing.assert_close(network.from_base(base, metadata), logits)
    torch.testing.assert_close(network.output(features), logits)
    with pytest.raises(ValueError, match="metadata"):
        network(image)


def test_without_hidden_layers_features_are_the_base():
    network = network_of("alert_cnn", dropout=0.5).eval()
    image = torch.rand(2, 3, 63, 63)
    torch.testing.assert_close(network.features(image), network.base(image))
    assert len(network_of("alert_cnn", dropout=0.5).head) == 1


def test_dropout_follows_the_first_dense_layer():
    head = network_of("alert_cnn", head=(1024, 512), dropout=0.7).head
    assert [type(layer).__name__ for layer in head] == [
        "Linear", "ReLU", "Dropout", "Linear", "ReLU",
    ]  # fmt: skip
    assert head[2].p == 0.7


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "convnext_picco"}, "convnext_pico"),
        ({"architecture": "maxvit_tiny_rw_224", "image_size": 63}, "input_size=224"),
    ],
)
def test_impossible_networks_are_refused(config, message):
    with pytest.raises(ConfigError, match=message):
        network_of(**config)


def test_wrong_images_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 63, 63\)"):
        network_of("alert_cnn")(torch.rand(2, 3, 64, 64))


# metadata ----------------------------------------------------------------------------------
def test_metadata_norm_is_batch_norm_where_nothing_is_missing():
    ours, reference = MetadataNorm(6), nn.BatchNorm1d(6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        x = 5 + 3 * torch.randn(16, 6, generator=generator)
        torch.testing.assert_close(ours(x), reference(x))
    for name, value in reference.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
    torch.testing.assert_close(ours.eval()(x), reference.eval()(x))


def test_missing_metadata_count_as_the_mean():
    norm, reference = MetadataNorm(2), nn.BatchNorm1d(2)
    nn.init.constant_(norm.bias, 0.25)
    nn.init.constant_(reference.bias, 0.25)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    holes = x.clone()
    holes[::2, 0], holes[5, 1] = float("nan"), float("inf")
    y = norm(holes)
    torch.testing.assert_close(y[::2, 0], torch.full((32,), 0.25))
    torch.testing.assert_close(y[1::2, 0], reference(x[1::2])[:, 0])  # statistics of the known
    assert torch.isfinite(y).all()
    empty = torch.full((4, 2), float("nan"))
    before = norm.running_mean.clone()
    torch.testing.assert_close(norm(empty), torch.full((4, 2), 0.25))
    torch.testing.assert_close(norm.running_mean, before)


def test_metadata_gradients_are_finite_with_holes():
    network = network_of("alert_cnn", metadata=3, metadata_layers=(4,), conv_dropout=(0.0, 0.0))
    metadata = torch.randn(8, 3)
    metadata[0] = float("nan")
    metadata[:, 1] = float("nan")
    network(torch.rand(8, 3, 63, 63), metadata).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# freezing ----------------------------------------------------------------------------------
def test_unfreezing_from_a_position():
    with torch.device("meta"):
        network = network_of("legacy_xception", metadata=2, metadata_layers=(3,), head=(8,))
    names = [name for name, _ in network.named_parameters()]

    def learning(fraction: float) -> list[str]:
        return [name for name in names if unfreeze_from(network, fraction)(name)]

    assert learning(0.0) == names
    assert {name.partition(".")[0] for name in learning(1.0)} == {"metadata", "head", "output"}
    sizes = [len(learning(fraction)) for fraction in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert sizes == sorted(sizes, reverse=True)
    half = learning(0.5)
    assert half == names[len(names) - len(half) :]  # a contiguous end
    assert "backbone.conv4.pointwise.weight" in half
    assert "backbone.conv1.weight" not in half
    with pytest.raises(ValueError, match="0–1"):
        unfreeze_from(network, 1.5)


def test_frozen_batch_norm_uses_and_keeps_its_running_statistics():
    network = network_of("efficientnet_b0", head=(8,))
    trains = unfreeze_from(network, 0.5)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(trains(name))
    network.train()
    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
    before = {name: norm.running_mean.clone() for name, norm in norms.items()}
    network(torch.rand(4, 3, 50, 50))
    frozen = {name for name in norms if not trains(f"{name}.weight")}
    assert 0 < len(frozen) < len(norms)
    for name, norm in norms.items():
        assert torch.equal(norm.running_mean, before[name]) == (name in frozen)
        assert norm.training == (name not in frozen)
    assert network.head.training
    network.eval()
    assert not any(module.training for module in network.modules())
