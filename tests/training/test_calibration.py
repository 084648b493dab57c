"""The bundle's calibration: the same of one share of the rows and of many, for every family."""

import numpy as np
import pytest
import torch

from skyray.bundles.bundle import read_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.prepared import prepare
from skyray.data.prepared_tables import PreparedTable, publish, write_batches
from skyray.families.base import known_families, load_family
from skyray.runtime import places
from skyray.training import calibration
from skyray.training.calibration import Trained, assemble_bundle, finish, outputs_of_share
from skyray.training.contract.case import Case
from skyray.training.scale import Scale
from skyray.training.worker import Position, StageFiles


def table_of(case: Case, uri: str, rows: int) -> PreparedTable:
    inputs = case.inputs(True, range(rows))
    part = write_batches(uri, lambda: iter([inputs]), rows)
    publish(uri, [part], {"splits": {"validation": [0, rows]}})
    return PreparedTable(uri)


@pytest.mark.parametrize("name", known_families())
def test_shares_give_the_calibration_of_the_whole(name, tmp_path):
    """Bit by bit, and within rounding that of all rows in one block."""
    case = Case(load_family(name), load_family(name).examples()[0])
    family = case.family()
    torch.manual_seed(0)
    model = family.build_model()
    files = StageFiles(str(tmp_path))
    for stage in family.stages():
        files.finish(stage.name, stage.part(model).state_dict(), Position())
    table = table_of(case, str(tmp_path / "table.lance"), case.rows)
    trained = Trained.of(family, table, str(tmp_path))

    def fitted(shares: int, block: int):
        found = [outputs_of_share(trained, r, shares, block=block) for r in range(shares)]
        values, tensors = family.fit_calibration(calibration._joined(found))
        return found, values, tensors

    whole, values, tensors = fitted(1, 8)
    found, again, same = fitted(3, 8)
    assert max(len(next(iter(f.values()))) for f in found) < len(next(iter(whole[0].values())))
    assert again == values
    assert all(torch.equal(same[key], tensors[key]) for key in tensors)
    (at_once,), _, _ = fitted(1, case.rows)
    for key, column in whole[0].items():
        if column.dtype.kind == "f":
            np.testing.assert_allclose(at_once[key], column, rtol=1e-4, atol=1e-5)
        else:
            np.testing.assert_array_equal(at_once[key], column)


def test_many_rows_are_drawn_and_none_are_refused(tmp_path, monkeypatch):
    case = Case(load_family("alerts"), load_family("alerts").examples()[0])
    table = table_of(case, str(tmp_path / "table.lance"), 12)
    monkeypatch.setattr(calibration, "CALIBRATION_ROWS", 5)
    first, other = (calibration.calibration_rows(table, seed) for seed in (0, 1))
    assert len(set(first)) == len(set(other)) == 5
    assert (np.diff(first) > 0).all()
    assert list(first) != list(other)
    monkeypatch.setattr(PreparedTable, "rows", lambda self, split=None: range(0))
    with pytest.raises(
        ConfigError, match=r"table\.lance: expected rows to calibrate on, found none"
    ):
        calibration.calibration_rows(table, 0)


@pytest.mark.slow
def test_workers_of_a_cluster_write_the_bundle_of_one_process(
    tiny_bundle, mock_dataset, tiny_recipe, tmp_path
):
    family = load_family("redshift")(tiny_recipe, Dataset.open(mock_dataset).info())
    table = prepare(Dataset.open(mock_dataset), family, progress=False)
    run_id = read_bundle(tiny_bundle)["run_id"]
    trained = Trained.of(family, table, places.join(places.home(), "runs", run_id))
    alone = outputs_of_share(trained, block=8)
    about = {"version": "v", "run_id": run_id, "created": "", "git_commit": "", "versions": {}}
    assemble_bundle(trained, str(tmp_path / "one"), about, [], alone)
    finish(trained, str(tmp_path / "many"), about, [], Scale(workers=2), 1, block=8)
    one, many = tmp_path / "one", tmp_path / "many"
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in many.iterdir())
    assert all((one / name).read_bytes() == (many / name).read_bytes() for name in names)
