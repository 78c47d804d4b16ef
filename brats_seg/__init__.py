"""Segmentation of brain tumors in multimodal MRI with class imbalance as its focus.

The names of this module are for your own programs: `import brats_seg as bs`. A name is imported at its first
use, so that importing this module takes no time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from brats_seg.bank.bank import PatchBank as PatchBank
    from brats_seg.bank.loader import BankDataset as BankDataset
    from brats_seg.core.config import load_config as load_config
    from brats_seg.evaluation.conventions import CONVENTIONS as CONVENTIONS
    from brats_seg.evaluation.folders import evaluate_folders as evaluate
    from brats_seg.evaluation.scores import score_case as score_case
    from brats_seg.imbalance.ledger import Ledger as Ledger
    from brats_seg.imbalance.samplers import make_sampler as make_sampler
    from brats_seg.inference.loaded import load_run as load_run
    from brats_seg.pipeline import predict as predict
    from brats_seg.pipeline import train as train
    from brats_seg.pipeline import verify_scans as verify
    from brats_seg.scans.layouts import find_cases as find_cases

_HOMES = {
    "BankDataset": "bank.loader.BankDataset",
    "CONVENTIONS": "evaluation.conventions.CONVENTIONS",
    "Ledger": "imbalance.ledger.Ledger",
    "PatchBank": "bank.bank.PatchBank",
    "evaluate": "evaluation.folders.evaluate_folders",
    "find_cases": "scans.layouts.find_cases",
    "load_config": "core.config.load_config",
    "load_run": "inference.loaded.load_run",
    "make_sampler": "imbalance.samplers.make_sampler",
    "predict": "pipeline.predict",
    "score_case": "evaluation.scores.score_case",
    "train": "pipeline.train",
    "verify": "pipeline.verify_scans",
}
"""The module that defines each public name."""

__all__ = [
    "CONVENTIONS",
    "BankDataset",
    "Ledger",
    "PatchBank",
    "evaluate",
    "find_cases",
    "load_config",
    "load_run",
    "make_sampler",
    "predict",
    "score_case",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'brats_seg' has no attribute '{name}'; it has {', '.join(_HOMES)}")
    module, _, attribute = _HOMES[name].rpartition(".")
    value = getattr(import_module(f"brats_seg.{module}"), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
