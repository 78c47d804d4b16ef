"""An autoencoder of healthy patches as a detector of tumor, beside a classifier of the same budget.

Both learn from 64 x 64 patches of the training cases of each fold: the autoencoder from patches without
tumor, the classifier (a small 2-D U-Net, healthy or tumor) from any. On every N-th slice of the held-out
cases each gives a score for each voxel. The brightness of t2f, which learns nothing, stands beside them.

python tools/healthy_patches.py BANK OUT.csv --steps 400
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.files import write_text
from brats_seg.core.sections import Network
from brats_seg.core.statistics import describe
from brats_seg.core.tables import csv_text
from brats_seg.models.networks import make_network
from brats_seg.models.one_class import Autoencoder

SIDE, STRIDE, BATCH = 64, 32, 16
OUTSIDE = 255
KEPT = 0.95
"""Share of the tumor voxels of four training cases that the first stage of the cascade lets through."""
Score = Callable[[Tensor], Tensor]
"""Patches (b, m, y, x) -> a score for each voxel (b, y, x)."""


def draw_patches(
    bank: PatchBank, classes: tuple[int, ...], generator: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Patches around random voxels, each of the classes with the same share; their targets."""
    of = generator.choice(classes, BATCH)
    ids = bank.index.pick(of, generator.integers(0, bank.index.counts[of]))
    batch = bank.batch(ids)
    return batch.inputs.float(), batch.targets.clone()


def fit_autoencoder(bank: PatchBank, *, steps: int, seed: int) -> nn.Module:
    """Train on patches without a voxel of tumor."""
    torch.manual_seed(seed)
    network = Autoencoder(len(bank.modalities), (SIDE, SIDE), width=16, code=64)
    generator, optimizer = np.random.default_rng(seed), torch.optim.Adam(network.parameters(), lr=1e-3)
    kept: list[Tensor] = []
    done = 0
    while done < steps:
        inputs, targets = draw_patches(bank, (0,), generator)
        kept.append(inputs[~((targets > 0) & (targets < OUTSIDE)).flatten(1).any(1)])
        if sum(map(len, kept)) < BATCH:
            continue
        pool = torch.cat(kept)
        loss, kept = network(pool[:BATCH]).mean(), [pool[BATCH:].clone()]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done += 1
    return network.eval()


def fit_classifier(bank: PatchBank, *, steps: int, seed: int) -> nn.Module:
    """Train on patches around as many voxels of tumor as of healthy tissue."""
    torch.manual_seed(seed)
    section = Network(name="unet2d", channels=(16, 32, 64), num_res_units=0)
    network = make_network(section, n_channels=len(bank.modalities), n_classes=2, n_dims=2)
    generator, optimizer = np.random.default_rng(seed), torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(steps):
        inputs, targets = draw_patches(bank, (0, 1), generator)
        truth = (targets == 1).long()
        loss = nn.functional.cross_entropy(network(inputs), truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@torch.no_grad()
def score_slices(image: np.ndarray, score: Score) -> np.ndarray:
    """Scores (z, y, x) of slices (z, y, x, m): the mean over the patches that show a voxel."""
    z, y, x, _ = image.shape
    total, n = np.zeros((z, y, x)), np.zeros((y, x))
    tops, lefts = ([*range(0, side - SIDE, STRIDE), side - SIDE] for side in (y, x))
    inputs = torch.from_numpy(image.astype(np.float32)).permute(0, 3, 1, 2)
    for top in tops:
        for left in lefts:
            here = np.s_[top : top + SIDE, left : left + SIDE]
            total[:, *here] += score(inputs[:, :, *here].contiguous()).numpy()
            n[here] += 1
    return total / n


def dice(found: np.ndarray, tumor: np.ndarray) -> float:
    """Dice of two masks."""
    both = found.sum() + tumor.sum()
    return float(2 * (found & tumor).sum() / both) if both else 1.0


def main() -> None:
    """Five folds; a row for each case and detector, and the means with intervals over cases."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bank", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=8, help="score every so-manieth slice")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    whole = PatchBank(asked.bank, patch_size=(SIDE, SIDE)).regroup("healthy_or_tumor")
    t2f, rows = whole.modalities.index("t2f"), []
    for fold, held_out in enumerate(whole.folds):
        train = whole.select([case.id for case in whole.cases if case.id not in held_out])
        autoencoder = fit_autoencoder(train, steps=asked.steps, seed=fold)
        classifier = fit_classifier(train, steps=asked.steps, seed=fold)
        detectors: dict[str, Score] = {
            "autoencoder, absolute": lambda p, net=autoencoder: net.residual(p).abs().mean(1),
            "autoencoder, squared": lambda p, net=autoencoder: net.residual(p).square().mean(1),
            "brightness of t2f": lambda p: p[:, t2f],
            "classifier": lambda p, net=classifier: torch.softmax(net(p), 1)[:, 1],
        }
        scored: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {name: {} for name in detectors}
        looked_at = {*held_out, *[case.id for case in whole.cases if case.id not in held_out][:4]}
        for number, case in enumerate(whole.cases):
            if case.id not in looked_at:
                continue
            image, tissue = (array[:: asked.every] for array in whole.volume(number))
            inside = tissue != OUTSIDE
            wanted = detectors if case.id in held_out else ("autoencoder, absolute",)
            for name in wanted:
                values = score_slices(image, detectors[name])
                scored[name][case.id] = values[inside], (tissue == 1)[inside]
        firsts = scored["autoencoder, absolute"]
        of_tumor = np.concatenate([v[t] for case, (v, t) in firsts.items() if case not in held_out])
        least = np.quantile(of_tumor, 1 - KEPT)
        scored["cascade: autoencoder, then classifier"] = {
            case: (np.where(firsts[case][0] >= least, values, 0.0), tumor)
            for case, (values, tumor) in scored["classifier"].items()
        }
        for name, cases in scored.items():
            held = {case: pair for case, pair in cases.items() if case in held_out}
            cuts = np.quantile(np.concatenate([v for v, _ in held.values()]), np.linspace(0.5, 0.999, 60))
            means = [np.mean([dice(v > cut, t) for v, t in held.values()]) for cut in cuts]
            best = cuts[int(np.argmax(means))]
            for case, (values, tumor) in held.items():
                auc = float(roc_auc_score(tumor, values))
                rows.append(
                    {
                        "detector": name,
                        "fold": fold,
                        "case": case,
                        "auc": auc,
                        "dice": dice(values > best, tumor),
                    }
                )
        print(f"fold {fold} done", flush=True)
    write_text(asked.out, csv_text(rows))
    for name in dict.fromkeys(row["detector"] for row in rows):
        mine = [row for row in rows if row["detector"] == name]
        for score in ("auc", "dice"):
            over = describe([row[score] for row in mine], [row["case"] for row in mine])
            low, high = over["interval95"]
            print(f"{name}: {score} {over['mean']:.3f} [{low:.3f}, {high:.3f}], n {over['n']}")


if __name__ == "__main__":
    main()
