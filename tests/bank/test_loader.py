"""The bank in a plain DataLoader: each position once, with workers and without."""

from pathlib import Path

import monai.data
import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, default_convert

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.loader import BankDataset
from brats_seg.core.errors import UsageError
from brats_seg.imbalance.samplers import make_sampler


def dataset(small_bank: Path) -> BankDataset:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    return BankDataset(bank, make_sampler("balanced", bank.index, batch_size=8, steps=5, seed=0))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("two_cores")
def test_two_passes_give_each_position_of_two_epochs_once_in_order(small_bank: Path, workers: int) -> None:
    loader = DataLoader(dataset(small_bank), batch_size=None, num_workers=workers)
    expected = make_sampler("balanced", dataset(small_bank).bank.index, batch_size=8, steps=5, seed=0)
    for _ in range(2):
        batches = list(loader)
        assert torch.cat([batch["positions"] for batch in batches]).tolist() == list(range(40))
        assert torch.cat([batch["ids"] for batch in batches]).tolist() == [
            i for _ in range(5) for i in expected.next().ids.tolist()
        ]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.usefixtures("two_cores")
def test_workers_that_stay_go_on_too(small_bank: Path) -> None:
    here = DataLoader(dataset(small_bank), batch_size=None)
    there = DataLoader(dataset(small_bank), batch_size=None, num_workers=2, persistent_workers=True)
    for _ in range(3):
        for a, b in zip(here, there, strict=True):
            assert torch.equal(a["ids"], b["ids"])
            assert torch.equal(a["image"], b["image"])
            assert a["image"].stride() == b["image"].stride()


def test_the_label_at_the_center_is_what_was_drawn(small_bank: Path) -> None:
    batch = next(iter(DataLoader(dataset(small_bank), batch_size=None)))
    assert batch["image"].shape == (8, 4, 8, 8)
    assert sorted(batch["label"][:, 4, 4].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_pass_is_the_rest_of_the_epoch(small_bank: Path) -> None:
    data = dataset(small_bank)
    data.sampler.next()
    data.sampler.next()
    assert [batch["positions"][0].item() for batch in DataLoader(data, batch_size=None)] == [16, 24, 32]
    assert (data.sampler.epoch, data.sampler.step) == (2, 0)


@pytest.mark.parametrize("loader_class", [DataLoader, monai.data.DataLoader])
def test_loaders_give_whole_batches_and_know_how_many(
    small_bank: Path, loader_class: type[DataLoader]
) -> None:
    loader = loader_class(dataset(small_bank), batch_size=None, collate_fn=default_convert)
    assert len(loader) == 5
    for _ in range(2):
        batches = list(loader)
        assert len(batches) == 5
        assert batches[0]["image"].shape == (8, 4, 8, 8)


def test_the_length_stays_that_of_an_epoch_after_a_shorter_first_pass(small_bank: Path) -> None:
    data = dataset(small_bank)
    data.sampler.next()
    loader = DataLoader(data, batch_size=None)
    assert [(len(loader), len(list(loader))) for _ in range(2)] == [(5, 4), (5, 5)]


def test_a_loader_that_joins_examples_is_told_what_to_give_it(small_bank: Path) -> None:
    with pytest.raises(
        UsageError, match=r"batch_size=None and collate_fn=torch\.utils\.data\.default_convert"
    ):
        next(iter(monai.data.DataLoader(dataset(small_bank), batch_size=None)))
    with pytest.raises(KeyError, match="mask"):
        next(iter(DataLoader(dataset(small_bank), batch_size=None)))["mask"]


def test_labels_are_bytes_that_a_loss_takes_as_the_documentation_says(small_bank: Path) -> None:
    batch = next(iter(DataLoader(dataset(small_bank), batch_size=None)))
    assert batch["label"].dtype == torch.uint8
    assert set(batch["label"].unique().tolist()) == {0, 1, 2, 3, 255}
    inside = batch["label"] != 255
    logits = torch.nn.functional.one_hot(batch["label"].long() * inside, 4).movedim(-1, 1) * 50.0
    assert cross_entropy(logits, batch["label"].long(), ignore_index=255) < 1e-6
