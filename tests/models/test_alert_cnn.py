"""BTSbot's CNN: layers and sizes of the released network."""

import pytest
import torch
from torch import nn

from skyray.models.alert_cnn import AlertCNN
from skyray.models.vision import VisionConfig, VisionNetwork

PRODUCTION = VisionConfig(
    architecture="alert_cnn", head=(8,), dropout=0.2, metadata=25, metadata_layers=(128, 128)
)


def test_size_of_the_production_network():
    network = VisionNetwork(PRODUCTION, bands=3, outputs=1, image_size=63)
    assert network.base_width == 64 * 7 * 7
    assert sum(p.numel() for p in network.parameters()) == 227_811  # "0.23 M"


def test_same_numbers_as_the_layers_written_out():
    torch.manual_seed(0)
    network = AlertCNN().eval()
    released = nn.Sequential(
        nn.Conv2d(3, 32, 5, padding="same"), nn.ReLU(),
        nn.Conv2d(32, 32, 5, padding="same"), nn.ReLU(),
        nn.MaxPool2d(kernel_size=2, stride=2), nn.Dropout2d(0.5),
        nn.Conv2d(32, 64, 5, padding="same"), nn.ReLU(),
        nn.Conv2d(64, 64, 5, padding="same"), nn.ReLU(),
        nn.MaxPool2d(kernel_size=4, stride=4), nn.Dropout2d(0.55), nn.Flatten(),
    ).eval()  # fmt: skip
    state = {f"conv_layers.{name}": value for name, value in released.state_dict().items()}
    network.load_state_dict(state)
    image = torch.rand(2, 3, 63, 63)
    torch.testing.assert_close(network(image), released(image))


def test_dropout_takes_whole_channels_in_training_only():
    torch.manual_seed(0)
    network = AlertCNN(dropout=(0.5, 0.5)).train()
    dropped = (network(torch.rand(8, 3, 63, 63)).view(8, 64, 49) == 0).all(dim=2)
    assert 0.3 < dropped.float().mean() < 0.7
    image = torch.rand(2, 3, 63, 63)
    network.eval()
    torch.testing.assert_close(network(image), network(image), rtol=0, atol=0)


@pytest.mark.parametrize(("size", "side"), [(63, 7), (64, 8), (8, 1)])
def test_other_image_sizes(size, side):
    assert AlertCNN(image_size=size)(torch.rand(1, 3, size, size)).shape == (1, 64 * side**2)


def test_too_small_images_are_refused():
    with pytest.raises(ValueError, match="8 pixels"):
        AlertCNN(image_size=7)
