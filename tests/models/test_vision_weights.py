"""Pre-trained weights: where they are looked for, what is refused, what loading does."""

import time
import urllib.error

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from skimage import data
from tests.vision_networks import network_of
from torch import nn

from skyray.config import ConfigError
from skyray.models import vision_weights
from skyray.models.vision_weights import find_weights, lite0_package_file, load_pretrained

torch.set_num_threads(1)


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
    assert lite0_package_file() is not None, "the lock file installs it"
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
