"""The card of lens images in npy folders and npz files."""

import numpy as np
import pytest
from pyarrow import fs

from skyray.cards import load_card
from skyray.data.sources import FileSource
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import check_cutout
from skyray.transforms.images import fit_image


def read(path):
    card = load_card("lenses_folder")
    reader = make_reader(card.reader, card.reader_options)
    return card, list(reader.read(SurveyFile(fs.LocalFileSystem(), str(path))))


@pytest.mark.parametrize(
    ("folder", "label"),
    [("no_sub", "NO_SUBSTRUCTURE"), ("no", "NO_SUBSTRUCTURE"), ("sphere", "CDM"), ("cdm", "CDM"),
     ("vort", "AXION"), ("axion", "AXION"), ("other", "")],
)  # fmt: skip
def test_the_folder_names_the_class(tmp_path, folder, label):
    (tmp_path / folder).mkdir()
    image = np.random.default_rng(0).random((1, 150, 150))
    np.save(tmp_path / folder / "7.npy", image)
    card, (record,) = read(tmp_path / folder / "7.npy")
    check_cutout(record, card.bands)
    assert card.label_of(record.fields()) == label
    assert fit_image(record.image, card.image_size, card.image_fit).shape == (1, 64, 64)


def test_deeplense_examples(survey_data):
    card, records = read(survey_data / "lenses_deeplense" / "examples.npz")
    for record in records:
        check_cutout(record, card.bands)
        assert record.image.shape == (1, 64, 64)
    assert {card.label_of(r.fields()) for r in records} == set(card.classes)


def test_models_as_deeplense_ships_them(tmp_path):
    """Trees train/CLASS/NAME.npy; axion files are pickled [image, mass] (DeepLenseSim)."""
    rng = np.random.default_rng(2)
    card = load_card("lenses_folder")
    shown = {}
    for split in ("train", "val"):
        for folder in ("no_sub", "cdm", "axion"):
            (tmp_path / split / folder).mkdir(parents=True)
            for number in range(2):
                image = rng.random((150, 150))
                stored = image
                if folder == "axion":
                    stored = np.empty(2, object)
                    stored[:] = [image, 1e-23 * (1 + number)]
                name = f"{split}/{folder}/{folder}_sim_{number}"
                np.save(tmp_path / f"{name}.npy", stored, allow_pickle=True)
                shown[name] = image
    source = FileSource(card, [tmp_path])
    records = [r for unit in source.units(str(tmp_path)) for r in source.read(unit)]
    assert {r.object_id for r in records} == set(shown)
    labels = [card.label_of(r.fields()) for r in records]
    assert sorted(labels) == sorted(card.classes * 4)
    for record, label in zip(records, labels, strict=True):
        np.testing.assert_array_equal(record.image[0], shown[record.object_id].astype("f4"))
        assert ("axion_mass" in record.extra) == (label == "AXION")


def test_model_iv_has_three_bands(tmp_path):
    (tmp_path / "cdm").mkdir()
    image = np.random.default_rng(3).random((64, 64, 3))
    np.save(tmp_path / "cdm" / "sim_1.npy", image)
    card = load_card("lenses_colour")
    reader = make_reader(card.reader, card.reader_options)
    path = str(tmp_path / "cdm" / "sim_1.npy")
    (record,) = reader.read(SurveyFile(fs.LocalFileSystem(), path))
    np.testing.assert_array_equal(record.image, image.transpose(2, 0, 1).astype("f4"))
    assert card.label_of(record.fields()) == "CDM"
