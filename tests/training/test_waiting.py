"""No step makes the processor wait for the GPU: a stand-in for tensors on a card counts the looks at them."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_step import learner, unet
from tiny_bank import CLASSES, knobs, write_bank
from torch import Tensor

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.gather import gather_patches_torch, make_resident
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.sampler import Draw
from brats_seg.imbalance.samplers import make_sampler
from brats_seg.training.augment import Augmenter
from brats_seg.training.step import count_middle
from brats_seg.training.steps import Examples, Steps, alone

WAITING = {
    "item", "tolist", "numpy", "cpu", "__array__", "__bool__", "__int__", "__float__", "__index__", "equal",
    "nonzero", "masked_select", "is_nonzero", "unique", "bincount", "argwhere", "allclose",
}  # fmt: skip
"""Calls that bring values of a card to the processor, or whose shape follows from such values."""


class OnCard(Tensor):
    """A tensor on the processor that stands for one on a card; what is computed of it is on the card too."""

    looks: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        by_mask = function.__name__ in ("__getitem__", "__setitem__") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], tuple) else (args[1],))
        )
        if function.__name__ in WAITING or by_mask:
            cls.looks.append(function.__name__)
        return super().__torch_function__(function, types, args, kwargs)


def on_card(tensor: Tensor) -> OnCard:
    return tensor.as_subclass(OnCard)


class CardSource:
    """Patches of a bank that lies on the card, transformed there, as `BankSource` makes them."""

    def __init__(self, bank: PatchBank, augment: Augmenter, *, margin: int) -> None:
        self.bank, self.augment, self.margin = bank, augment, margin
        resident = make_resident(bank._volumes, bank.selected, device=torch.device("cpu"))
        tensors = {field.name: on_card(getattr(resident, field.name)) for field in fields(resident)}
        self.resident = replace(resident, **tensors)

    @property
    def index(self) -> ClassIndex:
        return self.bank.index

    def batch(self, draw: Draw, *, number: int) -> Examples:
        parameters = self.augment.draw(epoch=1, positions=draw.positions, n_modalities=4)
        inputs, targets, counts = gather_patches_torch(
            self.resident, draw.ids, patch_size=self.bank.patch_size, n_classes=len(CLASSES),
            maps=self.augment.maps(parameters),
        )  # fmt: skip
        counts, targets = on_card(counts), on_card(targets)
        if self.margin:
            counts = count_middle(targets, margin=self.margin, n_classes=len(CLASSES))
        return Examples(*self.augment(on_card(inputs), targets, parameters=parameters), counts)


@pytest.mark.parametrize("margin", [0, 2])
def test_no_step_looks_at_the_card_and_a_look_at_the_losses_is_one(tmp_path: Path, margin: int) -> None:
    config = knobs(
        augment={
            "flip": 0.5, "rotate_degrees": 20, "scale": (0.8, 1.2), "gain": (0.8, 1.2), "shift": (-0.1, 0.1),
            "contrast": (0.8, 1.2), "gamma": (0.8, 1.3), "gamma_inverted": 0.5, "noise_sd": (0.0, 0.1),
            "sharpness": (-0.5, 0.5), "bias_field": (0.0, 0.1), "low_resolution": (0.5, 1.0),
            "modality_dropout": 0.3,
        }
    )  # fmt: skip
    bank = PatchBank(write_bank(tmp_path / "bank", names=("A", "B")), patch_size=(16, 16))
    augment = Augmenter(config.augment, seed=0, patch_size=(16, 16))
    source, ledger = CardSource(bank, augment, margin=margin), Ledger(CLASSES)
    steps = Steps(
        sampler=make_sampler("balanced", bank.index, batch_size=6, steps=3, seed=0),
        source=source,
        learner=learner(unet("batch")),
        ledger=ledger,
    )
    steps.learner.begin_epoch()
    OnCard.looks.clear()
    for number in range(3):
        alone(steps.take(number))
    assert OnCard.looks == []
    values = [value for _, _, value in steps.losses()]
    assert np.isfinite(values).all()
    assert OnCard.looks == ["tolist"]
    rows = ledger.close_epoch(1, steps.sampler.requested)
    assert sum(row["voxel_share"] for row in rows[:-1]) == pytest.approx(1)


def test_the_stand_in_sees_what_would_wait() -> None:
    OnCard.looks.clear()
    one = on_card(torch.ones(3))
    for look in (lambda: one.sum().item(), lambda: one[one > 0], lambda: bool(one.any()), one.numpy):
        look()
    assert OnCard.looks == ["item", "__getitem__", "__bool__", "numpy"]
