"""Augmentation: exact symmetries, the affine map against scipy, limits and determinism."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from skyray.transforms import augment as module
from skyray.transforms.augment import NO_AUGMENTATION, SYMMETRIES, AugmentConfig, augment


def images(rows: int = 64, side: int = 9) -> torch.Tensor:
    return torch.rand(rows, 2, side, side, generator=torch.Generator().manual_seed(1))


def dihedral(image: np.ndarray) -> list[np.ndarray]:
    turned = [np.rot90(image, k, (-2, -1)) for k in range(4)]
    return turned + [t[..., ::-1] for t in turned]


def test_same_state_same_images():
    batch = images()
    first, second, third = (
        augment(batch, AugmentConfig(), torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    torch.manual_seed(7)
    one = augment(batch, AugmentConfig())
    torch.manual_seed(7)
    assert torch.equal(one, augment(batch, AugmentConfig()))


def test_nothing_asked_nothing_changed():
    batch = images()
    assert augment(batch, NO_AUGMENTATION) is batch
    assert not NO_AUGMENTATION.active


def test_symmetries_are_exact_and_all_eight_occur():
    batch = images(400)
    out = augment(batch, SYMMETRIES, torch.Generator().manual_seed(0)).numpy()
    seen = np.zeros(8, int)
    for before, after in zip(batch.numpy(), out, strict=True):
        equal = [np.array_equal(after, form) for form in dihedral(before)]
        assert sum(equal) == 1
        seen[equal.index(True)] += 1
    assert (seen > 25).all()


def test_flips_take_half_of_the_images():
    config = NO_AUGMENTATION.override(["flip_horizontal=true"])
    batch = images(1000)
    out = augment(batch, config, torch.Generator().manual_seed(0))
    same = (out == batch).all(dim=(1, 2, 3)).float().mean()
    assert 0.45 < same < 0.55


@pytest.mark.parametrize("shape", [(24, 24), (20, 32)])
def test_affine_agrees_with_scipy(shape):
    """The same map applied by scipy's affine_transform in pixel coordinates."""
    height, width = shape
    batch = torch.rand(5, 1, height, width, generator=torch.Generator().manual_seed(2))
    config = AugmentConfig(flip_horizontal=False, flip_vertical=False)
    found = augment(batch, config, torch.Generator().manual_seed(9))
    maps = module.affine_maps(5, config, batch, torch.Generator().manual_seed(9)).double().numpy()
    centre = np.array([(height - 1) / 2, (width - 1) / 2])
    for image, out, theta in zip(batch.numpy(), found.numpy(), maps, strict=True):
        matrix = theta[::-1, 1::-1]  # (y, x) order, a rotation of pixels
        shift = theta[::-1, 2] * np.array([height, width]) / 2
        expected = ndimage.affine_transform(
            image[0], matrix, centre + shift - matrix @ centre, order=1, mode="nearest"
        )
        np.testing.assert_allclose(out[0], expected, atol=2e-4)


def test_draws_stay_within_their_limits():
    like = torch.zeros(1)
    maps = module.affine_maps(20_000, AugmentConfig(), like, torch.Generator().manual_seed(0))
    angle = torch.rad2deg(torch.atan2(maps[:, 1, 0], maps[:, 0, 0]))
    zoom = torch.linalg.vector_norm(maps[:, :, 0], dim=1)
    shift = maps[:, 0, 2] / 2
    for drawn, low, high in ((angle, -45, 45), (zoom, 0.7, 1.3), (shift, -0.3, 0.3)):
        span = high - low
        assert low <= drawn.min() <= low + 0.01 * span
        assert high - 0.01 * span <= drawn.max() <= high + 1e-5
        assert drawn.mean() == pytest.approx((low + high) / 2, abs=0.02 * span)


def test_quarter_turns_need_squares():
    with pytest.raises(ValueError, match="expected square images"):
        augment(torch.zeros(1, 1, 4, 6), SYMMETRIES)
