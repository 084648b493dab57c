"""One check for every family, ours or a stranger's: all that the engine relies on."""

from __future__ import annotations

from collections.abc import Sequence

from skyray.families.base import Example, Family
from skyray.training.contract import answers, data, exports, stages
from skyray.training.contract.case import BrokenContract, Case


def check_family(
    family: type[Family], examples: Sequence[Example] | None = None, seed: int = 0
) -> None:
    """Run every contract of a family on each of its examples; needs no Ray.

    In order: ``columns``, ``transform``, ``identity``, ``pickle``, ``transform_settings``,
    ``search_space``, ``build_model``, ``stages``, and of each stage ``rows``, ``features``,
    ``part``, ``trains``, ``prepare``, ``at_epoch`` and ``loss`` with one step of its optimiser;
    ``objective``, ``weights``, ``raw_outputs``, ``fit_calibration``, ``predict``,
    ``infer``, ``finish``, ``scoring_table``, ``evaluate``, ``plain``, ``export``.

    Parameters
    ----------
    family : type of Family
    examples : sequence of Example, optional
        Small recipes with their cards; default: ``family.examples()``.
    seed : int
        Of the mock surveys.

    Raises
    ------
    BrokenContract
        At the first contract that does not hold; it names family, contract, what was expected and
        what was found.
    """
    tried = list(family.examples() if examples is None else examples)
    if not tried:
        raise BrokenContract(family.name, "examples", "one Example at least", "none")
    for example in tried:
        check_example(Case(family, example, seed))


def check_example(case: Case) -> None:
    """Run every contract on one example."""
    data.check_columns(case)
    data.check_transform(case)
    data.check_identity(case)
    data.check_transform_settings(case)
    data.check_search_space(case)
    stages.check_model(case)
    answering = answers.Answering(case, stages.train_one_step(case))
    answering.calibrate()
    answering.predict()
    answering.in_two_steps()
    answering.evaluate()
    exports.check_export(answering)
