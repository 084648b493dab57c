"""Which files of a folder are looked at, and that every one of them is accounted for."""

from __future__ import annotations

import fnmatch
import shutil
import time
from collections import Counter

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs
from tests.damaged_fits import spec_file

from skyray.cards import load_card
from skyray.data.sources import FileSource, Unclaimed, Unit
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.fits_bytes import FitsFile
from skyray.readers.layout import describe, fits_names, stem
from skyray.records import InvalidRecord

SPECTRA = ("sdss_spec", "desi_coadd", "lamost", "fourmost")


@pytest.mark.parametrize(
    ("name", "expected"),
    [("a.fits", "a"), ("A.FIT.GZ", "A"), ("a.b.fts.bz2", "a.b"), ("x.fits.fz", "x"), 
     ("a.gz", "a.gz"), ("", ""), ("fits", "fits")],
)  # fmt: skip
def test_stem(name, expected):
    assert stem(name) == expected


@pytest.mark.parametrize("reader", SPECTRA)
@pytest.mark.parametrize("name", ["x.fits", "X.FITS", "x.Fit", "x.fts.gz", "x.fits.bz2", "X.FZ"])
def test_every_ending_of_a_fits_file_is_looked_at(reader, name):
    assert make_reader(reader).claims(f"folder.d/{name}")


@pytest.mark.parametrize("reader", SPECTRA)
@pytest.mark.parametrize("name", ["x.csv", "x.fits.part", "x.fits.sha256", "fits", "x.fits.txt"])
def test_other_files_are_left_alone(reader, name):
    assert not make_reader(reader).claims(name)


def test_names_are_chosen_as_fnmatch_does_and_in_no_time():
    reader, words = make_reader("sdss_spec"), ("spec-1", "spPlate-1", "SPZALL-", "a[1]", "a\nb", "")
    ends = (".fits", ".FITS.gz", ".fit.fz", ".fits.part", ".csv", "\n", "")
    for name in (f"{word}{end}".lower() for word in words for end in ends):
        looked_at, known = (
            any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
            for patterns in (reader.patterns, reader.companions)
        )
        assert reader.claims(name) == (looked_at and not known), name
    names = [f"{number:04d}/spec-0001-50000-{number:04d}.fits" for number in range(10_000)]
    began = time.process_time()
    assert all(map(reader.claims, names))
    assert time.process_time() - began < 0.4  # pattern by pattern: more than twice that


def test_names_of_stems():
    assert "redrock-*.fits.gz" in fits_names("redrock-*")
    assert len(set(fits_names("a", "b"))) == 70


def test_description_names_hdus_columns_and_shapes(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("TARGETID", "K", array=[1])], name="MAP")
    hdus = [fits.PrimaryHDU(), table, fits.ImageHDU(np.zeros((2, 3))), fits.ImageHDU(name="EMPTY")]
    fits.HDUList(hdus).writeto(tmp_path / "x.fits")
    with FitsFile(SurveyFile(fs.LocalFileSystem(), str(tmp_path / "x.fits"))) as found:
        text = describe(found)
    assert text == "PRIMARY (no data), MAP (table of targetid), #2 (image 2 × 3), EMPTY (no data)"


def test_nothing_of_a_mixed_folder_is_lost(survey_data, tmp_path):
    raw = survey_data / "spectra_desi" / "raw_fits"
    for path in raw.iterdir():
        shutil.copy(path, tmp_path)
    shutil.copy(raw / "redrock-special-dark-27247.fits", tmp_path / "renamed.fits")
    (tmp_path / "SPEC.FITS").write_bytes(spec_file())
    (tmp_path / "broken.fit").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no spectrum")
    source = FileSource(load_card("desi"), [tmp_path])
    (start,) = source.starts()
    listed = list(source.units(start))
    units = [unit for unit in listed if isinstance(unit, Unit)]
    assert [unit.count for unit in listed if isinstance(unit, Unclaimed)] == [2]  # redrock, notes
    found = Counter()
    for unit in units:
        try:
            for record in source.read(unit):
                found[getattr(record, "reason", "read")] += 1
        except InvalidRecord as refusal:
            found[refusal.reason] += 1
    assert found == {"read": 2, "fibre_unassigned": 3, "fibre_broken": 1, "companion_file": 1,
                     "layout_unknown": 1, "file_empty": 1}  # fmt: skip
