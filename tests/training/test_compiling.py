"""Compiled steps: the same losses, and training without them where there is no compiler."""

import copy
import logging

import pytest
import torch
from tests.training.stranger import ColourFamily

from skyray.training import compiling
from skyray.training.contract.case import Case
from skyray.training.loader import to_tensors
from skyray.training.loop import StageLoss
from skyray.training.optimizers import make_optimizer

CPU = torch.device("cpu")


@pytest.fixture
def afresh():
    compiling._refusal.cache_clear()
    yield
    compiling._refusal.cache_clear()
    torch._dynamo.reset()


def losses(module, stage, batches) -> list[float]:
    optimizer = make_optimizer(stage.train.optimizer, module, stage.lr_factor)
    found = []
    for seed, batch in enumerate(batches):
        torch.manual_seed(seed)
        loss, _ = module(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(float(loss.detach()))
    return found


@pytest.mark.slow
def test_compiled_steps_learn_as_others_do(afresh):
    """Also batches of other sizes, as an epoch's last ones are."""
    if why := compiling._refusal("cpu"):
        pytest.skip(f"nothing compiles here: {why}")
    case = Case(ColourFamily, ColourFamily.examples()[0])
    family = case.family()
    torch.manual_seed(0)
    model, stage = family.build_model(), family.stages()[0]
    rows = to_tensors(case.inputs(True))
    batches = [{name: values[:size] for name, values in rows.items()} for size in (16, 16, 9)]
    plain = StageLoss(stage.part(model), stage)
    other = copy.deepcopy(plain)
    made = compiling.compiled(other, CPU)
    assert made is not other
    expected = losses(plain, stage, batches)
    torch.testing.assert_close(losses(made, stage, batches), expected, rtol=1e-4, atol=1e-5)


def test_without_a_compiler_training_goes_on_and_says_so(afresh, caplog):
    module = torch.nn.Linear(2, 1)
    with (
        torch._inductor.config.patch({"cpp.cxx": (None, "no-such-compiler")}),
        caplog.at_level(logging.WARNING),
    ):
        assert compiling.compiled(module, CPU) is module
    (line,) = [record.getMessage() for record in caplog.records if "train.compile" in record.msg]
    assert line.startswith("train.compile: expected a machine that compiles for cpu, found: ")
    assert "no-such-compiler" in line
    assert "\n" not in line
