"""The card of lens images in npy folders and npz files."""

import numpy as np
import pytest
from pyarrow import fs

from skyray.cards import load_card
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
