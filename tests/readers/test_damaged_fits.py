"""Every damaged file is refused for its own, right reason; so is a file cut anywhere."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pyarrow import fs
from tests.damaged_fits import DAMAGED, spec_file

from skyray.readers.base import SurveyFile, make_reader
from skyray.records import InvalidRecord, Spectrum, check_spectrum

RAW = "spec-0266-51602-0013", "spec-3655-55240-0026", "spec-7102-56666-0156"


def read_and_check(path) -> list[Spectrum]:
    """Read as ingest does: a file-level fault raises, a record is checked."""
    records = list(make_reader("sdss_spec").read(SurveyFile(fs.LocalFileSystem(), str(path))))
    for record in records:
        if isinstance(record, InvalidRecord):
            raise record
        check_spectrum(record)
    return records


def test_reasons_are_distinct_and_many():
    reasons = [reason for _, reason in DAMAGED.values()]
    assert len(set(reasons)) == len(reasons) >= 20


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_has_its_reason(tmp_path, name):
    check_reason(spec_file(), name, tmp_path / "spec-0266-51602-0007.fits")


@pytest.mark.parametrize("raw", RAW)
def test_damage_to_real_files_has_its_reason(survey_data, tmp_path, raw):
    good = (survey_data / "spectra_sdss" / "raw_fits" / f"{raw}.fits").read_bytes()
    for name in DAMAGED:
        check_reason(good, name, tmp_path / f"{raw}.fits")


def check_reason(good: bytes, name: str, path: Path) -> None:
    damage, reason = DAMAGED[name]
    path.write_bytes(damage(good))
    with pytest.raises(InvalidRecord) as refusal:
        read_and_check(path)
    assert refusal.value.reason == reason, (name, refusal.value)
    assert refusal.value.source == str(path)
    assert refusal.value.detail


def test_a_cut_anywhere_is_refused_or_harmless(survey_data, tmp_path):
    """Cut in the parts that are read: refused. Behind them: the same spectrum."""
    good = (survey_data / "spectra_sdss/raw_fits/spec-0266-51602-0013.fits").read_bytes()
    path = tmp_path / "spec-0266-51602-0013.fits"
    path.write_bytes(good)
    (whole,) = read_and_check(path)
    outcomes = set()
    for size in np.random.default_rng(1).integers(1, len(good), 60):
        path.write_bytes(good[:size])
        try:
            (spectrum,) = read_and_check(path)
        except InvalidRecord as refusal:
            outcomes.add(refusal.reason)
        else:
            outcomes.add("read")
            np.testing.assert_array_equal(spectrum.flux, whole.flux)
            assert spectrum.redshift == whole.redshift or spectrum.spectype == ""
    assert outcomes <= {"header_truncated", "data_truncated", "hdu_missing", "not_fits", "read"}
    assert "data_truncated" in outcomes


def test_random_bytes_never_escape_as_another_error(survey_data, tmp_path):
    """Flip bytes of the headers: the reader answers with a record or an InvalidRecord."""
    good = (survey_data / "spectra_sdss/raw_fits/spec-7102-56666-0156.fits").read_bytes()
    path = tmp_path / "spec-7102-56666-0156.fits"
    rng = np.random.default_rng(2)
    coadd = good.find(b"XTENSION")
    refused = 0
    for _ in range(150):
        content = np.frombuffer(good, dtype=np.uint8).copy()
        at = coadd + rng.integers(0, 2880, 4)
        content[at] = rng.integers(32, 127, 4)
        path.write_bytes(content.tobytes())
        try:
            read_and_check(path)
        except InvalidRecord:
            refused += 1
    assert refused > 10
