"""Redshifting, resampling and line spread against numpy and closed forms."""

import numpy as np
import pytest
import torch

from skyray.models.instrument import Instrument, redshift_and_resample
from skyray.records import Grid

OBSERVED = Grid("linear", 3600.0, 0.8, 7781)
REST = Grid("linear", 2000.0, 7824.0 / 9779, 9780)
REDSHIFTS = (0.0, 0.003, 0.0871, 0.31, 0.799, 1.7)


def rest_spectra(count: int, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.as_tensor(1 + rng.normal(0, 0.3, (count, REST.size)), dtype=torch.float32)


def gaussian(wavelength, centre: float, sigma: float) -> np.ndarray:
    return np.exp(-0.5 * ((np.asarray(wavelength) - centre) / sigma) ** 2)


@pytest.mark.parametrize(
    "observed", [OBSERVED, Grid("log10", 3.5797, 1e-4, 3800)], ids=["linear", "log10"]
)
def test_agrees_with_numpy_interp(observed):
    rest_BR, wavelength = rest_spectra(len(REDSHIFTS)), observed.wavelength()
    z = torch.tensor(REDSHIFTS, dtype=torch.float64)
    model, valid = redshift_and_resample(rest_BR, z, REST, torch.as_tensor(wavelength))
    assert model.dtype == torch.float32
    for i, redshift in enumerate(REDSHIFTS):
        redshifted = REST.wavelength() * (1 + redshift)
        expected = np.interp(wavelength, redshifted, rest_BR[i].double(), left=0, right=0)
        inside = (wavelength >= redshifted[0]) & (wavelength <= redshifted[-1])
        sure = np.abs(wavelength[:, None] - redshifted[[0, -1]]).min(axis=1) > 1e-6
        assert np.array_equal(valid[i].numpy()[sure], inside[sure])
        assert np.abs(model[i].numpy() - expected)[sure].max() < 1e-5


def test_out_of_range_is_zero_and_masked():
    rest = Grid("linear", 4000.0, 1.0, 1001)
    wavelength = torch.arange(3500.0, 6500.0, 1.0, dtype=torch.float64)
    model, valid = redshift_and_resample(
        torch.full((2, 1001), 7.0), torch.tensor([0.0, 0.2]), rest, wavelength
    )
    for row, (low, high) in enumerate([(4000.0, 5000.0), (4800.0, 6000.0)]):
        inside = (wavelength >= low) & (wavelength <= high)
        inside = inside if row == 0 else inside & (wavelength > low) & (wavelength < high)
        edge = (wavelength == low) | (wavelength == high)
        assert torch.equal(valid[row] | edge, inside | edge)
    assert torch.equal(model != 0, valid)
    assert torch.allclose(model[valid], torch.tensor(7.0))
    assert valid[0, 500]
    assert valid[0, 1500]  # the ends themselves are known


@pytest.mark.parametrize("redshift", REDSHIFTS[:5])
@pytest.mark.parametrize("lsf", [None, torch.tensor([0.1, 0.2, 0.4, 0.2, 0.1])])
def test_a_line_lands_where_its_redshift_puts_it(redshift, lsf):
    line = 4500.37 if redshift else 5007.13
    rest = torch.as_tensor(gaussian(REST.wavelength(), line, 1.6), dtype=torch.float32)[None]
    instrument = Instrument(OBSERVED, lsf)
    model, _ = instrument.observe(rest, torch.tensor([redshift], dtype=torch.float64), REST)
    flux, wavelength = model[0].double().numpy(), OBSERVED.wavelength()
    centroid = (flux * wavelength).sum() / flux.sum()
    assert abs(centroid - line * (1 + redshift)) < 0.05 * OBSERVED.step


def test_gradients_are_those_of_finite_differences():
    torch.manual_seed(0)
    rest = Grid("linear", 4000.0, 10.0, 20)
    wavelength = torch.linspace(4050, 4600, 23, dtype=torch.float64)
    z = torch.tensor([0.0, 0.03, 0.1], dtype=torch.float64)
    values = torch.randn(3, 20, dtype=torch.float64, requires_grad=True)

    def resampled(x: torch.Tensor) -> torch.Tensor:
        return redshift_and_resample(x, z, rest, wavelength)[0]

    assert torch.autograd.gradcheck(resampled, (values,))
    kernel = torch.tensor([0.2, 0.5, 0.3])
    instrument = Instrument(Grid("linear", 4050.0, 25.0, 23), kernel, trainable=True)
    assert torch.autograd.gradcheck(lambda x: instrument.observe(x, z, rest)[0], (values,))
    instrument.observe(values, z, rest)[0].square().sum().backward()
    assert instrument.lsf.grad.abs().sum() > 0


def test_unused_rest_pixels_get_no_gradient():
    values = torch.ones(1, REST.size, requires_grad=True)
    model, valid = redshift_and_resample(
        values, torch.tensor([0.5]), REST, torch.as_tensor(OBSERVED.wavelength())
    )
    model.sum().backward()
    # Interpolation weights sum to 1 at each pixel that is known.
    assert values.grad.sum().item() == pytest.approx(valid.sum().item(), rel=1e-5)
    used = (REST.wavelength() * 1.5 > 3600 - 2) & (REST.wavelength() * 1.5 < 9824 + 2)
    assert not values.grad[0, torch.as_tensor(~used)].any()


def test_autocast_changes_nothing():
    instrument = Instrument(OBSERVED, torch.tensor([1.0, 2.0, 1.0]))
    rest, z = rest_spectra(2), torch.tensor([0.1, 0.7])
    plain, _ = instrument.observe(rest, z, REST)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast, _ = instrument.observe(rest, z, REST)
    assert cast.dtype == torch.float32
    assert torch.equal(plain, cast)


def test_wavelengths_stay_in_double():
    instrument = Instrument(OBSERVED, torch.tensor([1.0, 2.0, 1.0])).to(torch.bfloat16)
    assert instrument.wavelength.dtype == torch.float64
    assert np.array_equal(instrument.wavelength.numpy(), OBSERVED.wavelength())
    assert instrument.lsf.dtype == torch.bfloat16
    assert "extended" not in instrument.state_dict()


def test_line_spread_conserves_flux_and_place():
    line = torch.as_tensor(gaussian(REST.wavelength(), 5007.0, 2.0), dtype=torch.float32)[None]
    z = torch.tensor([0.2])
    sharp, _ = Instrument(OBSERVED).observe(line, z, REST)
    offsets = np.arange(-15, 16)
    kernel = torch.as_tensor(37 * gaussian(offsets, 0, 4.0))  # not normalised: Instrument does it
    spread, valid = Instrument(OBSERVED, kernel).observe(line, z, REST)
    assert spread.sum().item() == pytest.approx(sharp.sum().item(), rel=1e-5)
    pixels = torch.arange(OBSERVED.size, dtype=torch.float64)

    def centre_and_width(flux: torch.Tensor) -> tuple[float, float]:
        flux = flux[0].double() / flux[0].double().sum()
        centre = (flux * pixels).sum()
        return centre.item(), (flux * (pixels - centre) ** 2).sum().sqrt().item()

    (place, width), (place_spread, width_spread) = map(centre_and_width, (sharp, spread))
    assert place_spread == pytest.approx(place, abs=1e-3)
    assert width_spread == pytest.approx(np.hypot(width, 4.0), rel=1e-3)
    assert valid.all()


def test_an_asymmetric_kernel_points_the_right_way():
    """lsf[i] is the share that goes i − len // 2 pixels up."""
    rest = Grid("linear", 100.0, 1.0, 200)
    flux = torch.zeros(1, 200)
    flux[0, 100] = 1.0
    instrument = Instrument(Grid("linear", 150.0, 1.0, 100), torch.tensor([0.0, 0.7, 0.3]))
    model, _ = instrument.observe(flux, torch.zeros(1), rest)
    assert model[0, 49:53].tolist() == pytest.approx([0, 0.7, 0.3, 0], abs=1e-6)


def test_line_spread_keeps_a_flat_spectrum_flat_to_the_last_pixel():
    kernel = torch.ones(9)
    model, valid = Instrument(OBSERVED, kernel).observe(
        torch.ones(1, REST.size), torch.tensor([0.3]), REST
    )
    assert valid.all()
    assert torch.allclose(model, torch.ones_like(model), atol=1e-5)
    # Beyond the rest-frame range nothing is known of what the kernel would bring in.
    model, valid = Instrument(OBSERVED, kernel).observe(
        torch.ones(1, REST.size), torch.tensor([0.8001]), REST
    )
    first = int(np.ceil((2000 * 1.8001 - 3600) / 0.8)) + 4
    assert valid[0].nonzero()[0].item() == first
    assert torch.allclose(model[valid], torch.tensor(1.0), atol=1e-5)
    assert not model[~valid].any()


def test_agrees_with_the_line_spread_of_spender():
    spender = pytest.importorskip("spender")

    class Spectrograph(spender.Instrument):
        pass

    kernel = torch.tensor([0.1, 0.5, 0.3, 0.06, 0.04])
    theirs = Spectrograph(
        torch.as_tensor(OBSERVED.wavelength()), lsf=spender.LSF(kernel, requires_grad=False)
    )
    decoder = spender.SpectrumDecoder(torch.as_tensor(REST.wavelength()), 2)
    rest, z = rest_spectra(2), torch.tensor([0.15, 0.6], dtype=torch.float64)
    expected = decoder.transform(rest, instrument=theirs, z=z)
    model, valid = Instrument(OBSERVED, kernel).observe(rest, z, REST)
    inside = valid.clone()
    inside[:, :2] = inside[:, -2:] = False  # the original loses flux at the ends
    assert (model - expected)[inside].abs().max() < 1e-5


@pytest.mark.parametrize(
    "kernel", [torch.ones(4), torch.ones(2, 3), torch.tensor([1.0, -2.0, 1.0])]
)
def test_kernels_without_a_centre_or_flux_are_refused(kernel):
    with pytest.raises(ValueError, match="odd length and positive sum"):
        Instrument(OBSERVED, kernel)


def test_wrong_shapes_are_refused():
    wavelength = torch.as_tensor(OBSERVED.wavelength())
    with pytest.raises(ValueError, match="rest_BR"):
        redshift_and_resample(torch.ones(2, 5), torch.zeros(2), REST, wavelength)
    with pytest.raises(ValueError, match="linear grid"):
        redshift_and_resample(
            torch.ones(2, 5), torch.zeros(2), Grid("log10", 3, 1e-4, 5), wavelength
        )
