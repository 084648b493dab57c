"""Quality bits of a redshift, each with a word and a sentence; 0 means: use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bit:
    """One warning: its value in the column ``quality``, its word and what it says."""

    value: int
    word: str
    sentence: str


BITS = (
    Bit(1, "small_delta_chi2", "another redshift fits nearly as well"),
    Bit(2, "class_unsure", "an object of another class fits nearly as well, or was not tried at "
        "this redshift"),
    Bit(4, "few_good_pixels", "less than half of the wavelength range was measured"),
    Bit(8, "outside_templates", "the best redshift lies at the end of the templates' range, or "
        "they cover less than nine tenths of the spectrum there"),
    Bit(16, "lines_not_covered", "fewer than two of the class's main features lie on good pixels"),
    Bit(32, "poor_fit", "no template describes the spectrum: χ² is many times the pixels' number"),
    Bit(64, "negative_model", "the best model is negative light"),
    Bit(128, "members_disagree", "templates leave it open, and the networks' members disagree"),
    Bit(256, "out_of_domain", "templates leave it open, and the networks know no such spectra"),
    Bit(512, "network_disagrees", "networks that are sure of their answer give another one"),
    Bit(1024, "survey_disagrees", "the survey trusts another redshift or class"),
    Bit(2048, "no_fit", "nothing could be fitted"),
    Bit(4096, "one_feature", "without the strongest narrow feature another redshift fits as well"),
)  # fmt: skip
VALUE = {bit.word: bit.value for bit in BITS}
SURVEY_DISAGREES = VALUE["survey_disagrees"]


def pack(flags: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the bits of words → bool [B] as int32 [B]."""
    total = np.zeros(len(next(iter(flags.values()))), np.int32)
    for word, flag in flags.items():
        total |= np.where(flag, np.int32(VALUE[word]), np.int32(0))
    return total


def words(quality: np.ndarray) -> np.ndarray:
    """Return the words of each row's bits, separated by commas; '' where none is set."""
    texts = [",".join(bit.word for bit in BITS if value & bit.value) for value in quality]
    return np.array(texts, dtype=object)
