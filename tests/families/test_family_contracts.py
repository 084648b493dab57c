"""Every family of the house keeps every contract of a family, on each of its examples."""

import pytest

from skyray.families.base import known_families, load_family
from skyray.training.contract import check_family


@pytest.mark.parametrize("name", known_families())
def test_contracts(name):
    check_family(load_family(name))
