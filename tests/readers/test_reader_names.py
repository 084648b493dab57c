"""Cards name readers; a reader's module is imported where a card names it, and only there."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys

import pytest

import skyray.readers
from skyray.readers import base


def test_every_reader_is_found_by_its_name():
    for module in pkgutil.iter_modules(skyray.readers.__path__):
        importlib.import_module(f"skyray.readers.{module.name}")
    known = {name: reader.__module__.rpartition(".")[2] for name, reader in base._READERS.items()}
    assert {name: known[name] for name in base.MODULES} == base.MODULES
    ours = {name for name in known if base._READERS[name].__module__.startswith("skyray.")}
    assert ours == set(base.MODULES)


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(KeyError, match=r"reader 'sdss': unknown; known: .*'sdss_spec'"):
        base.make_reader("sdss")


def test_training_workers_import_no_reader():
    code = (
        "import sys, skyray.training.loop; "
        "print([m for m in sys.modules if m.startswith(('astropy', 'skyray.readers.desi'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
