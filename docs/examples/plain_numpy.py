"""Balanced batches of a patch bank in NumPy: the mean intensity of each tissue class.

python docs/examples/plain_numpy.py BANK
"""

import sys

import numpy as np

import brats_seg as bs

SIZE = 8


def main(folder: str) -> None:
    """Draw 20 batches, and print the mean of each modality and what the ledger counted."""
    bank = bs.PatchBank(folder, patch_size=(SIZE, SIZE))  # cases=[...] names the cases to train on
    sampler = bs.make_sampler("balanced", bank.index, batch_size=40, steps=20, seed=0)
    ledger = bs.Ledger(bank.classes)
    sums, counts = np.zeros((len(bank.classes), len(bank.modalities))), np.zeros(len(bank.classes))
    for _ in range(sampler.steps):
        draw = sampler.next()
        batch = bank.batch(draw.ids)  # inputs (B, M, Y, X), targets (B, Y, X)
        ledger.add(draw, batch.counts)
        centers = batch.inputs[:, :, SIZE // 2, SIZE // 2].numpy()
        np.add.at(sums, draw.classes, centers)
        np.add.at(counts, draw.classes, 1)
    for name, mean in zip(bank.classes, sums / np.maximum(counts, 1)[:, None], strict=True):
        print(
            name, *(f"{modality} {value:.2f}" for modality, value in zip(bank.modalities, mean, strict=True))
        )
    for row in ledger.close_epoch(1, sampler.requested_in(1)):
        print(row["class"], f"asked for {row['requested_share']:.2f}, drawn {row['center_share']:.2f}")


if __name__ == "__main__":
    main(sys.argv[1])
