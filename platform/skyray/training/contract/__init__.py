"""What every family promises, checked: `check_family` for ours and for a stranger's."""

from skyray.training.contract.case import BrokenContract
from skyray.training.contract.check import check_family

__all__ = ["BrokenContract", "check_family"]
