"""The equivariant encoder: symmetry, its plain twin, state that can be saved and copied."""

import copy
import sys

import pytest
import torch

from skyray.config import ConfigError
from skyray.models import escnn_import
from skyray.models.discriminator import Discriminator
from skyray.models.equivariant import AntialiasedPool, EquivariantConfig, EquivariantEncoder

TINY = (3, 4, 4, 5, 5, 4)


def encoder(size: int = 32, train: bool = False, bands: int = 1, **options) -> EquivariantEncoder:
    torch.manual_seed(0)
    made = EquivariantEncoder(EquivariantConfig(fields=TINY, **options), bands, size, 16)
    made.train()
    with torch.no_grad():  # statistics that a fold has to carry over
        for _ in range(3):
            made(1.0 + torch.randn(8, bands, size, size))
    return made.train(train)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(1))


TURNS = {
    "half turn": lambda x: torch.rot90(x, 2, (-2, -1)),
    "flip": lambda x: x.flip(-1),
    "other flip": lambda x: x.flip(-2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", TURNS)
def test_d2_maps_turn_with_the_image_and_features_stay(name, image):
    made, turn = encoder(), TURNS[name]
    torch.testing.assert_close(made.maps(turn(image)), turn(made.maps(image)), atol=1e-5, rtol=0)
    torch.testing.assert_close(made(turn(image)), made(image), atol=1e-5, rtol=0)


@torch.no_grad()
def test_d2_knows_no_quarter_turn_and_c4_does(image):
    def quarter(x):
        return torch.rot90(x, 1, (-2, -1))

    assert (encoder()(quarter(image)) - encoder()(image)).abs().max() > 1e-2
    made = encoder(group="C4")
    torch.testing.assert_close(made(quarter(image)), made(image), atol=1e-5, rtol=0)


@torch.no_grad()
def test_c8_nearly_knows_an_eighth_of_a_turn():
    """What is left is the error of sampling, which C4 has on top of not knowing the turn."""
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, 65)] * 2, indexing="ij")

    def change(group: str) -> torch.Tensor:
        made = encoder(65, group=group, mask=True)
        features = []
        for c, s in ((1.0, 0.0), (0.5**0.5, 0.5**0.5)):
            along, across = x * c + y * s, y * c - x * s
            blob = torch.exp(-((along / 0.6) ** 2) - (across / 0.15) ** 2)
            features.append(made(blob[None, None]))
        first, turned = features
        return (first - turned).norm() / first.norm()

    assert change("C8") < 0.02
    assert change("C8") < 0.5 * change("C4")


@torch.no_grad()
def test_flattened_readout_is_not_invariant(image):
    made = encoder(readout="flatten")
    assert (made(image.flip(-1)) - made(image)).abs().max() > 1e-2


@torch.no_grad()
@pytest.mark.parametrize(
    "options",
    [{}, {"group": "C4", "mask": True}, {"readout": "flatten", "mask": True, "input_size": 40},
     {"bands": 3}],
)  # fmt: skip
def test_plain_twin_is_equal(options):
    made = encoder(**options)
    image = torch.randn(4, options.get("bands", 1), 32, 32)
    plain = made.exported()
    assert not any(type(m).__module__.startswith("escnn") for m in plain.modules())
    torch.testing.assert_close(plain.maps(image), made.maps(image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(plain(image), made(image), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(made(image), encoder(**options)(image))  # left as it was


@torch.no_grad()
def test_bfloat16_twin_is_close(image):
    made = encoder()
    exact, rounded = made(image), made.exported("bf16")(image)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.03 * exact.abs().max()


def test_state_is_the_same_in_both_modes_and_loads_in_either(image):
    made = encoder(train=True)
    training = {k: v.clone() for k, v in made.state_dict().items()}
    made.eval()
    assert set(made.state_dict()) == set(training)
    other = EquivariantEncoder(EquivariantConfig(fields=TINY), 1, 32, 16).eval()
    other.load_state_dict(training)
    copied = copy.deepcopy(made)
    with torch.no_grad():
        torch.testing.assert_close(other(image), made(image))
        torch.testing.assert_close(copied(image), made(image))


def test_evaluation_follows_weights_that_change(image):
    """escnn expands filters once when it enters evaluation; ours must never be stale."""
    made = encoder()
    with torch.no_grad():
        before = made(image)
        for parameter in made.parameters():
            parameter.mul_(1.5)
        assert (made(image) - before).abs().max() > 1e-3


def test_norms_follow_the_mode(image):
    made = encoder()
    before = {k: v.clone() for k, v in made.state_dict().items()}
    made(image)
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    made.train()(image)
    moved = [k for k, v in made.state_dict().items() if not torch.equal(v, before[k])]
    assert moved
    assert all("running" in k or "tracked" in k for k in moved)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("side", "stride", "padded"), [(33, 2, True), (16, 2, True), (9, 1, False)]
)
def test_pool_is_that_of_escnn(side, stride, padded, layout):
    escnn = escnn_import.import_escnn()
    space = escnn.gspaces.flipRot2dOnR2(N=2)
    kind = escnn.nn.FieldType(space, 2 * [space.regular_repr])
    theirs = escnn.nn.PointwiseAvgPoolAntialiased(
        kind, 0.66, stride=stride, **({} if padded else {"padding": 0})
    )
    x = torch.randn(3, kind.size, side, side, dtype=torch.float64).to(memory_format=layout)
    expected = theirs.double()(escnn.nn.GeometricTensor(x, kind)).tensor
    found = AntialiasedPool(side, 0.66, stride, padded).double()(x)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.is_contiguous(memory_format=layout)


def test_published_network_has_the_published_shape():
    fields = (*TINY[:5], 64)  # the last decides; all of them take long to initialise
    config = EquivariantConfig(fields=fields, readout="flatten", mask=True, input_size=150)
    made = EquivariantEncoder(config, 1, 150, 256)
    assert made.dense[0].in_features == 61_504 == 64 * 31**2
    assert made.group_pool.in_type.size == 64 * 4


@pytest.mark.parametrize("group", ["D4", "O2", "C1"])
def test_refuses_groups_that_cannot_be_built(group):
    with pytest.raises(ConfigError, match="group"):
        EquivariantConfig.load({"group": group})


def test_missing_escnn_names_the_extra(monkeypatch):
    find = escnn_import.importlib.util.find_spec
    monkeypatch.setattr(
        escnn_import.importlib.util, "find_spec", lambda n: None if n == "escnn" else find(n)
    )
    with pytest.raises(ConfigError, match=r"skyray\[equivariant\]"):
        escnn_import.import_escnn()


def test_placeholder_of_lie_learn_raises_when_it_is_called(monkeypatch):
    name = "lie_learn.representations.SO3.wigner_d"
    for depth in range(1, 5):
        monkeypatch.delitem(sys.modules, ".".join(name.split(".")[:depth]), raising=False)
    escnn_import._stand_in_for_lie_learn()
    from lie_learn.representations.SO3.wigner_d import wigner_D_matrix

    with pytest.raises(NotImplementedError, match="SO\\(3\\)"):
        wigner_D_matrix(1, 0.0, 0.0, 0.0)


def test_discriminator_is_256_256_256_2():
    widths = [m.weight.shape for m in Discriminator().layers if hasattr(m, "weight")]
    assert [tuple(w) for w in widths] == [(256, 256), (256, 256), (2, 256)]
