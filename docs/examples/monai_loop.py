"""Balanced batches of a patch bank in a training loop of your own, with a network and a loss of MONAI.

python docs/examples/monai_loop.py BANK
"""

import sys

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch.utils.data import DataLoader

import brats_seg as bs


def main(folder: str) -> None:
    """Train five steps, and print the loss of each."""
    torch.manual_seed(0)
    bank = bs.PatchBank(folder, patch_size=(16, 16))  # cases=[...] names the cases to train on
    sampler = bs.make_sampler("balanced", bank.index, batch_size=16, steps=5, seed=0)
    loader = DataLoader(bs.BankDataset(bank, sampler), batch_size=None)
    n_classes = len(bank.classes)
    network = UNet(2, len(bank.modalities), n_classes, channels=(8, 16), strides=(2,))
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for batch in loader:
        label = batch["label"].long()
        label[label == 255] = 0  # outside the brain counts as healthy
        value = loss(network(batch["image"]), label[:, None])
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        print(f"loss {value.item():.3f}")


if __name__ == "__main__":
    main(sys.argv[1])
