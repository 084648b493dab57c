"""Sky lines: positions against another list, the mask against its definition, errors by line."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skyray.transforms.sky_lines import SkyLines, load_sky_lines, sky_line_mask

DESI = 3600.0 + 0.8 * np.arange(7781)
HEAD = "wavelength_air_angstrom,intensity,species\n"


@pytest.mark.parametrize(
    "vacuum", [5578.887, 5891.583, 6302.046, 6365.536, 7796.256, 7995.531, 8346.896, 8432.491,
               8829.520, 8922.084, 8960.543, 9378.533]
)  # fmt: skip
def test_bright_lines_lie_where_other_lists_have_them(vacuum):
    """Vacuum Å of [O I], Na and OH in the list of the PFS pipeline."""
    lines = load_sky_lines()
    nearest = np.abs(lines.wavelength_vacuum - vacuum).argmin()
    assert lines.wavelength_vacuum[nearest] == pytest.approx(vacuum, abs=0.35)
    assert lines.intensity[nearest] > 2.0


def test_built_in_table():
    lines = load_sky_lines()
    assert len(lines.wavelength_vacuum) == len(lines.intensity) == 111
    assert lines.wavelength_vacuum.dtype == lines.intensity.dtype == np.float64
    assert (np.diff(lines.wavelength_vacuum) > 0).all()
    assert lines.wavelength_vacuum[lines.intensity.argmax()] == pytest.approx(5578.9, abs=0.1)


def test_share_of_desi_pixels():
    """The paper states about 25 % for about 100 lines; the built-in table has fewer faint ones."""
    lines = load_sky_lines()
    assert 0.14 < sky_line_mask(DESI, lines).mean() < 0.18
    assert 0.22 < sky_line_mask(DESI, lines, min_intensity=0.5).mean() < 0.27


@given(
    st.lists(st.tuples(st.floats(3500, 9900), st.floats(0, 1e3)), max_size=8),
    st.floats(0.1, 50), st.floats(0.1, 30),
)  # fmt: skip
def test_mask_is_its_definition(rows, min_intensity, half_width):
    wavelength, intensity = np.array(rows, dtype=float).reshape(-1, 2).T
    expected = np.zeros(len(DESI), dtype=bool)
    for at, strength in zip(wavelength, intensity, strict=True):
        if strength > min_intensity:
            reach = half_width * (1 + np.log10(strength / min_intensity))
            expected |= np.abs(DESI - at) < reach
    found = sky_line_mask(DESI, SkyLines(wavelength, intensity), min_intensity, half_width)
    for at, strength in zip(wavelength, intensity, strict=True):
        edge = half_width * (1 + np.log10(max(strength, min_intensity) / min_intensity))
        near = np.abs(np.abs(DESI - at) - edge) < 1e-6
        expected[near] = found[near]  # a pixel on the very edge may round to either side
    np.testing.assert_array_equal(found, expected)


def test_own_file_in_the_table_format(tmp_path):
    file = tmp_path / "lines.csv"
    file.write_text(
        "# mine\nwavelength_air_angstrom,intensity,species\n5577.34,26,O I\n\n8000,1,\n"
    )
    lines = load_sky_lines(file)
    np.testing.assert_allclose(lines.wavelength_vacuum, [5578.89, 8002.20], atol=0.01)
    np.testing.assert_array_equal(lines.intensity, [26, 1])


def test_own_file_in_vacuum_nm(tmp_path):
    file = tmp_path / "sky-lines.txt"
    file.write_text("# nm, intensity\n557.8887  100.0  OI  0\n630.2046\t10 # great\n")
    lines = load_sky_lines(str(file))
    np.testing.assert_allclose(lines.wavelength_vacuum, [5578.887, 6302.046])
    np.testing.assert_array_equal(lines.intensity, [100, 10])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + "5577,26,O I\nnoon,3,OH\n", r"mine\.txt, line 3: .*'noon,3,OH'"),
        (HEAD + "5577\n", "line 2"),
        (HEAD + "-5577,1,OH\n", "line 2"),
        (HEAD + "5577,-1,OH\n", "line 2"),
        (HEAD + "nan,1,OH\n", "line 2"),
        ("557.7 1\n600.0\n", "line 2"),
        ("wavelength,intensity\n5577,1\n", "line 1: expected header"),
        (HEAD, "found none"),
        ("# nothing\n", "found none"),
    ],
)
def test_bad_files_are_named(tmp_path, text, message):
    file = tmp_path / "mine.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_sky_lines(file)


@pytest.mark.parametrize("options", [{"min_intensity": 0.0}, {"half_width": -1.0}])
def test_limits_must_be_positive(options):
    with pytest.raises(ValueError, match="> 0"):
        sky_line_mask(DESI, load_sky_lines(), **options)
