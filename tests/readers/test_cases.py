"""Survey files that were once misread: each case folder gives the expected values or a refusal.

The folder ``cases`` lies beside the test data; every case says in ``expected.json`` what is right.
Files are listed and read as ingest does, HTTP bodies decoded as the service does.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serve.decode import decode

from skyray.cards import Card, load_card
from skyray.data.rows import columns_of, row_of
from skyray.data.sources import FileSource, Unclaimed
from skyray.families.base import DataInfo, load_family, load_recipe
from skyray.records import InvalidRecord, Record, attempt

Row = dict[str, Any]


def cases_folder() -> Path:
    data = os.environ.get("SKYRAY_TEST_DATA", "")
    folder = Path(data).resolve().parent / "cases"
    if not data or not folder.is_dir():
        pytest.skip("survey files once misread: folder `cases` beside SKYRAY_TEST_DATA")
    return folder


def records_of(card: Card, *paths: Path) -> list[Record | InvalidRecord]:
    """Everything that files and folders hold, listed and read as ingest does."""
    source = FileSource(card, [str(path) for path in paths])
    found: list[Record | InvalidRecord] = []
    for start in source.starts():
        for unit in source.units(start):
            if isinstance(unit, Unclaimed):
                continue
            try:
                found += source.read(unit)
            except InvalidRecord as refusal:
                found.append(refusal)
    return found


def rows_of(card: Card | str | Path, *paths: Path) -> tuple[list[Row], list[InvalidRecord]]:
    """The rows and the refusals of files, with the card's labels, cuts and grid."""
    card = card if isinstance(card, Card) else load_card(card)
    rows, refused = [], []
    for record in records_of(card, *paths):
        try:
            if isinstance(record, InvalidRecord):
                raise record
            rows.append(row_of(card, record))
        except InvalidRecord as refusal:
            refused.append(refusal)
    return rows, refused


def reasons(refused: list[InvalidRecord]) -> list[str]:
    return [refusal.reason for refusal in refused]


def own_card(case: Path) -> Path:
    return case / "card.yaml"


# spectra ---------------------------------------------------------------------------------------
def eso_air(case: Path, expected: dict) -> None:
    card = load_card("fourmost_mock")
    for name in ("air", "vac"):
        (record,) = records_of(card, case / "input" / f"qmost_{name}.fits")
        line = record.wavelength[np.argmin(record.flux)]
        assert line == pytest.approx(expected[f"line_vacuum_{name}_file"], abs=0.3)


def eso_flux_unit(case: Path, expected: dict) -> None:
    card = load_card("fourmost_mock")
    for name, flux in expected["median_flux"].items():
        (record,) = records_of(card, case / "input" / f"qmost_{name}.fits")
        assert np.median(record.flux) == pytest.approx(flux, rel=1e-3), name
    for name in expected["refuse"]:
        (found,) = records_of(card, case / "input" / f"qmost_{name}.fits")
        if name == "pernm" and not isinstance(found, InvalidRecord):
            assert np.median(found.flux) == pytest.approx(0.1 * 5e17, rel=1e-3)
        else:
            assert isinstance(found, InvalidRecord), name
            assert found.reason == "unit_unknown"


def desi_two_arms(case: Path, expected: dict) -> None:
    rows, refused = rows_of("desi", case / "input")
    assert (len(rows), refused) == (expected["rows_written"], [])
    assert [row["redshift"] for row in rows] == pytest.approx(expected["redshift"])
    red = load_card("desi").grid.grid().wavelength() > 7640
    for row in rows:
        assert not row["ivar"][red].any()
        assert row["mask"][red].all()
        assert (row["ivar"][~red] > 0).mean() > 0.9


def desi_other_name(case: Path, expected: dict) -> None:
    (path,) = (case / "input").iterdir()
    card = load_card("desi")
    for files in (records_of(card, path), uploaded(card, path.read_bytes())):
        assert [record.zwarning for record in files] == [expected["zwarning"]]


def uploaded(card: Card, body: bytes) -> list[Record | InvalidRecord]:
    return list(decode("application/fits", body, card, 100, 1 << 26))


def desi_same_targetid(case: Path, expected: dict) -> None:
    records = records_of(load_card("desi"), case / "input")
    assert len(records) == expected["rows_read"]
    assert len({record.observation_id for record in records}) == expected["rows_kept"]
    keys = {load_card("desi").key_of(record.fields()) for record in records}
    assert len(keys) == 2


def byte_strings(case: Path, expected: dict) -> None:
    rows, refused = rows_of(own_card(case), case / "input")
    assert refused == []
    found = sorted((row["object_id"], row["label"]) for row in rows)
    assert found == list(zip(expected["object_id"], expected["label"], strict=True))


def bool_mask(case: Path, expected: dict) -> None:
    records = records_of(load_card(own_card(case)), case / "input")
    assert len(records) == expected["rows_written"]
    for record in records:
        assert np.sum(record.mask != 0) == expected["masked_pixels"]
        assert np.argmax(record.mask != 0) == expected["first_masked"]


def mixed_case(case: Path, expected: dict) -> None:
    rows, refused = rows_of(own_card(case), case / "input")
    assert (len(rows), refused) == (expected["rows_written"], [])


def vla_columns(case: Path, expected: dict) -> None:
    records = records_of(load_card(own_card(case)), case / "input")
    assert [len(record.flux) for record in records] == expected["pixels"]


def wavelength_gap(case: Path, expected: dict) -> None:
    ((row,), refused) = rows_of(own_card(case), case / "input")
    assert refused == []
    wavelength = load_card(own_card(case)).grid.grid().wavelength()
    low, high = expected["gap"]
    gap = (wavelength >= low) & (wavelength <= high)
    assert np.sum(gap & (row["mask"] == 0)) == expected["good_pixels_in_gap"]
    assert not row["ivar"][gap].any()
    assert np.mean(row["mask"][~gap] == 0) > 0.98


def float_targetid(case: Path, expected: dict) -> None:
    rows, refused = rows_of(own_card(case), case / "input")
    assert reasons(refused) == ["id_not_exact"] * (expected["rows_kept"] - len(rows))
    assert rows == []


def cgs(case: Path, expected: dict) -> None:
    body = (case / "input/request.json").read_bytes()
    card = load_card(own_card(case))
    found = [*records_of(card, case / "input/cgs.npz"), *decode("application/json", body, card, 9,
                                                               1 << 26)]  # fmt: skip
    assert len(found) == 2
    for record in found:
        if isinstance(record, InvalidRecord):
            assert "ivar" not in record.reason
        else:
            row = row_of(card, record)
            assert np.isfinite(row["flux"]).all()
            assert np.isfinite(row["ivar"]).all()
            assert record.snr == pytest.approx(expected["median_snr"], rel=0.01)


def sdss_v(case: Path, expected: dict) -> None:
    ((row,), refused) = rows_of("sdss_dr16", case / "input")
    assert refused == []
    for name, value in expected.items():
        assert row[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def trailing_padding(case: Path, expected: dict) -> None:
    for card, stem, rows in (("sdss_dr16", "spec", "sdss_rows"), ("desi", "coadd", "desi_rows")):
        (path,) = (case / "input").glob(f"{stem}-*")
        records = records_of(load_card(card), path)
        assert [type(record).__name__ for record in records] == ["Spectrum"] * expected[rows]


def sky_fibres(case: Path, expected: dict) -> None:
    rows, _ = rows_of("desi", case / "input")
    assert [row["object_id"] for row in rows if row["label"]] == expected["labelled"]


def object_key_edge(case: Path, expected: dict, folder: Path) -> None:
    from skyray.data.dataset import Dataset
    from skyray.data.ingest import ingest

    ingest(load_card("sdss_dr16"), [str(case / "input")], str(folder / "out"))
    keys = Dataset.open(str(folder / "out")).to_table(["object_key"])["object_key"].to_pylist()
    assert len(keys) == 4
    assert len(set(keys)) == expected["distinct_object_keys"]


# images and alerts -----------------------------------------------------------------------------
def rubin_chi2(case: Path, expected: dict) -> None:
    found = records_of(load_card("lsst_alerts"), case / "rubin.avro")
    expected = expected["expected"]
    for record in found:
        wanted = expected["chipsf"].pop(str(record.candid))
        assert record.candidate["chipsf"] == pytest.approx(wanted, abs=expected["tolerance"])
    assert not expected["chipsf"]


def rubin_crop(case: Path, expected: dict) -> None:
    card, recipe = load_card("lsst_alerts"), load_recipe("alerts/real_bogus_laptop")
    alerts = records_of(card, case / "rubin.avro")
    rng = np.random.default_rng(0)

    def spoilt(stamp: np.ndarray) -> np.ndarray:
        noise = rng.normal(0, np.nanstd(stamp), stamp.shape).astype(np.float32)
        noise[14:, 14:] = stamp[14:, 14:]
        return noise

    changed = [
        dataclasses.replace(a, **{n: spoilt(getattr(a, n)) for n in
                                  ("science", "template", "difference")})
        for a in alerts
    ]  # fmt: skip
    info = DataInfo(card.name, "alert", tuple(card.classes), {}, "", bands=tuple(card.bands),
                    image_size=card.image_size, image_fit=card.image_fit)  # fmt: skip
    family = load_family("alerts")(recipe, info)
    before, after = (
        family.transform(columns_of(records, info), False)["image"] for records in (alerts, changed)
    )
    assert before.shape == after.shape
    middle = slice(before.shape[-1] // 2 - 3, before.shape[-1] // 2)
    for one, other in zip(before, after, strict=True):
        assert not np.array_equal(one, other)
        assert not np.array_equal(one[:, middle, middle], other[:, middle, middle])
        peak = np.unravel_index(np.argmax(np.abs(one[2])), one[2].shape)
        assert np.hypot(*(np.array(peak) - one.shape[-1] / 2)) < one.shape[-1] / 4


def confluent_wire(case: Path, expected: dict) -> None:
    (found,) = records_of(load_card("lsst_alerts"), next(case.glob("*.bin")))
    if isinstance(found, InvalidRecord):
        assert "900" in found.detail
        assert "onfluent" in found.detail
    else:
        assert found.candid == expected["expected"]["diaSourceId"]


def fink_parquet(case: Path, expected: dict) -> None:
    (found,) = records_of(load_card("ztf_bts"), case / "ftransfer.parquet")
    if isinstance(found, InvalidRecord):
        assert "candidate" in found.detail
        assert "cutoutScience" in found.detail
    else:
        names = found.object_id, found.observation_id, str(found.candid)
        assert any(expected["expected"]["object_id"] in name for name in names)


def png_16bit(case: Path, expected: dict) -> None:
    found = {Path(r.source).stem: r for r in records_of(load_card(own_card(case)), case / "images")}
    with np.load(case / "truth.npz") as truth:
        for name, true in (("bright16", truth["bright"]), ("faint16", truth["faint"])):
            record = found[name]
            if isinstance(record, InvalidRecord):
                assert record.reason == "image_mode"
            else:
                np.testing.assert_array_equal(record.image, true.transpose(2, 0, 1))
    assert np.max(found["same8"].image) <= 255


def fits_blank(case: Path, expected: dict) -> None:
    card = load_card(own_card(case))
    few = records_of(card, case / "images/few.fits")[0].image
    assert np.isnan(few).sum() == expected["expected"]["few"]["nan"]
    assert np.nanmin(few) == pytest.approx(expected["expected"]["few"]["min"], abs=1e-6)
    rows, refused = rows_of(card, case / "images/most.fits")
    assert (rows, reasons(refused)) == ([], [expected["expected"]["most"]["refused"]])


def fpack_rice(case: Path, expected: dict) -> None:
    true = np.random.default_rng(2).integers(0, 4000, (64, 64))
    rows, refused = rows_of(own_card(case), case / "images")
    assert refused == []
    assert len(rows) == 3
    for row in rows:
        np.testing.assert_array_equal(row["image"][0], true)


def class_folders(case: Path, expected: dict) -> None:
    expected = expected["expected"]
    rows, refused = rows_of(own_card(case), case / "images")
    assert refused == []
    labels = [row["label"] for row in rows]
    counts = {"rows": len(rows), **{name: labels.count(name) for name in ("spiral", "elliptical")}}
    assert counts == expected["images"]
    assert len({row["observation_id"] for row in rows}) == expected["images"]["rows"]
    rows, refused = rows_of(case / "card_fits.yaml", case / "fits")
    assert refused == []
    assert len({row["observation_id"] for row in rows}) == expected["fits"]["rows"]


def gzipped_frames(case: Path, expected: dict) -> None:
    images = []
    for name in ("plain", "gz", "bz2", "lookup"):
        rows, refused = rows_of(case / f"card_{name}.yaml", case / "sky/objects.csv")
        assert (len(rows), refused) == (2, []), name
        images.append(np.stack([row["image"] for row in rows]))
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])


def band_order(case: Path, expected: dict) -> None:
    card, expected = load_card("legacy_survey_cutouts"), expected["expected"]
    for name in ("grz", "giz", "zrg"):
        (found,) = records_of(card, case / "images" / f"{name}.fits")
        if name == "giz" or (name == "zrg" and isinstance(found, InvalidRecord)):
            assert found.reason == "bands_wrong"
        else:
            levels = np.round(np.mean(found.image, axis=(1, 2))).tolist()
            assert levels == expected["grz"]


def json_text_number(case: Path, expected: dict) -> None:
    card = load_card("ztf_real_bogus")
    for name in ("good", "text", "tagged"):
        body = (case / "bodies" / f"{name}.json").read_bytes()
        (found,) = decode("application/json", body, card, 9, 1 << 26)
        if not isinstance(found, InvalidRecord):
            found = attempt(lambda found=found: row_of(card, found, apply_cuts=False))
        assert isinstance(found, InvalidRecord) == (expected["expected"][name] == 422), name


CHECKS = {
    "spectra/01-eso-air-ucd": eso_air,
    "spectra/02-eso-flux-unit": eso_flux_unit,
    "spectra/03-desi-two-arms": desi_two_arms,
    "spectra/04-desi-other-name": desi_other_name,
    "spectra/05-desi-same-targetid": desi_same_targetid,
    "spectra/06-bytes-strings": byte_strings,
    "spectra/07-bool-mask": bool_mask,
    "spectra/08-mixed-case-columns": mixed_case,
    "spectra/09-vla-columns": vla_columns,
    "spectra/11-wavelength-gap": wavelength_gap,
    "spectra/12-float-targetid": float_targetid,
    "spectra/14-cgs-float32": cgs,
    "spectra/16-sdssv-dr19": sdss_v,
    "spectra/18-trailing-padding": trailing_padding,
    "spectra/20-desi-sky-fibres": sky_fibres,
    "images_alerts/01-rubin-chi2": rubin_chi2,
    "images_alerts/02-rubin-30px-crop": rubin_crop,
    "images_alerts/04-confluent-wire": confluent_wire,
    "images_alerts/05-fink-parquet": fink_parquet,
    "images_alerts/07-png-16bit-rgb": png_16bit,
    "images_alerts/08-fits-blank": fits_blank,
    "images_alerts/09-fpack-rice": fpack_rice,
    "images_alerts/11-class-folders": class_folders,
    "images_alerts/12-gzipped-frames": gzipped_frames,
    "images_alerts/14-band-order": band_order,
    "images_alerts/19-json-text-number": json_text_number,
}
INGESTED = {"spectra/24-object-key-edge": object_key_edge}


def expected_of(case: Path) -> dict:
    return json.loads((case / "expected.json").read_text())


@pytest.mark.parametrize("name", CHECKS)
def test_a_case_has_its_values_or_its_refusal(name):
    case = cases_folder() / name
    CHECKS[name](case, expected_of(case))


@pytest.mark.slow
@pytest.mark.parametrize("name", INGESTED)
def test_a_case_that_only_a_whole_ingest_shows(name, ray_cluster, tmp_path):
    case = cases_folder() / name
    INGESTED[name](case, expected_of(case), tmp_path)


def test_every_case_is_checked():
    folder = cases_folder()
    found = {str(path.parent.relative_to(folder)) for path in folder.glob("*/*/expected.json")}
    assert found == {*CHECKS, *INGESTED}
