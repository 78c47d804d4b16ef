"""Class-balanced batches of 120 patches of 4x64x64 to float32 and labels, and of 3-D patches of 64x64x64."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from benchmarks.cohort import open_bank
from benchmarks.measure import Contender, Result, interleave
from benchmarks.peers import byte_copy, crop_loop_batches, monai_batches, torchio_batches, volumes_of
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.gather import PatchMaps
from brats_seg.imbalance.samplers import make_sampler

BATCH, BATCH_3D = 120, 4
# whole blocks of the sampler (273 batches of 120), so that the cost of drawing one is in every measurement
DRAWS_PER_TURN = 1092


def run(*, work: Path, quick: bool) -> Result:
    """Ours, drawing and gathering, beside MONAI, TorchIO, a crop loop and the copy of as many bytes; new ids
    each batch.
    """
    bank = open_bank(work)
    bank_3d = PatchBank(bank.path, patch_size=(64, 64, 64))
    contenders = [
        Contender("draw ids", drawing(bank), DRAWS_PER_TURN),
        Contender("gather", gathering(bank, batch_size=BATCH), 20),
        Contender("gather, 60 % mapped", gathering(bank, batch_size=BATCH, mapped=0.6), 20),
        Contender("gather, all mapped", gathering(bank, batch_size=BATCH, mapped=1.0), 20),
        Contender("byte copy", byte_copy(bank, n_voxels=BATCH * 64**2), 20),
        Contender("gather 3-D", gathering(bank_3d, batch_size=BATCH_3D), 4),
        Contender("gather 3-D, 60 % mapped", gathering(bank_3d, batch_size=BATCH_3D, mapped=0.6), 4),
        Contender("gather 3-D, all mapped", gathering(bank_3d, batch_size=BATCH_3D, mapped=1.0), 4),
        Contender("byte copy 3-D", byte_copy(bank_3d, n_voxels=BATCH_3D * 64**3), 4),
        *_peers(bank),
    ]
    rounds = 5 if quick else 15
    seconds = interleave(contenders, rounds=rounds)
    if not quick:
        # Apart from the others: their processes go on filling queues after their turn, and took two thirds of
        # our speed.
        seconds |= interleave(_peers_with_workers(bank), rounds=rounds)
    return _result(seconds)


def drawing(bank: PatchBank) -> Callable[[], object]:
    """Draw the ids of one balanced batch."""
    return make_sampler("balanced", bank.index, batch_size=BATCH, steps=1000, seed=0).next


def gathering(bank: PatchBank, *, batch_size: int, mapped: float = 0.0) -> Callable[[], object]:
    """Gather a balanced batch into one pair of buffers; the ids are new each time, and drawn before.

    `mapped` of the patches are turned by up to 30 degrees in each plane and scaled by 0.7 to 1.4.
    """
    sampler = make_sampler("balanced", bank.index, batch_size=batch_size, steps=1000, seed=0)
    rng = np.random.default_rng(0)
    some_maps = [
        random_maps(rng, batch_size, n_dims=len(bank.patch_size), mapped=mapped) if mapped else None
        for _ in range(50)
    ]

    def forever() -> Iterator[object]:
        out = bank.batch(sampler.next().ids)
        while True:
            for number, ids in enumerate([sampler.next().ids for _ in range(1000)]):
                yield bank.batch(ids, out=out, maps=some_maps[number % 50])

    return forever().__next__


def random_maps(rng: np.random.Generator, n: int, *, n_dims: int, mapped: float) -> PatchMaps:
    """Maps of `n` patches: a share `mapped` of them turned by up to 30 degrees and scaled by 0.7 to 1.4, the
    others the identity.
    """
    matrices = np.tile(np.eye(3), (n, 1, 1))
    for one, other in ((1, 2), (0, 2), (0, 1))[: 1 if n_dims == 2 else 3]:
        turn, angle = np.tile(np.eye(3), (n, 1, 1)), np.deg2rad(rng.uniform(-30, 30, n))
        turn[:, one, one] = turn[:, other, other] = np.cos(angle)
        turn[:, one, other], turn[:, other, one] = -np.sin(angle), np.sin(angle)
        matrices = matrices @ turn
    matrices /= np.exp(rng.uniform(np.log(0.7), np.log(1.4), n))[:, None, None]
    matrices[rng.random(n) >= mapped] = np.eye(3)
    return PatchMaps(np.zeros((n, 3), np.int64), matrices.astype(np.float32))


def _peers(bank: PatchBank) -> list[Contender]:
    volumes, k = volumes_of(bank), len(bank.classes)
    return [
        Contender("MONAI, 12 of 10 cases", monai_batches(volumes, n_classes=k, workers=0, from_cases=10), 3),
        Contender("MONAI, 120 of 1 case", monai_batches(volumes, n_classes=k, workers=0, from_cases=1), 3),
        Contender("crop loop", crop_loop_batches(volumes, n_classes=k), 5),
        Contender("lean crop loop", crop_loop_batches(volumes, n_classes=k, lean=True), 5),
        Contender("TorchIO", torchio_batches(volumes, n_classes=k, workers=0), 1),
    ]


def _peers_with_workers(bank: PatchBank) -> list[Contender]:
    volumes, k = volumes_of(bank), len(bank.classes)
    return [
        Contender(
            "MONAI, 120 of 1 case, 2 workers",
            monai_batches(volumes, n_classes=k, workers=2, from_cases=1),
            12,
            4,
            0.5,
        ),
        Contender(
            "MONAI, 12 of 10 cases, 2 workers",
            monai_batches(volumes, n_classes=k, workers=2, from_cases=10),
            12,
            4,
            0.5,
        ),
        Contender("TorchIO, 2 workers", torchio_batches(volumes, n_classes=k, workers=2), 2, 2, 2.0),
    ]


def _result(seconds: dict[str, float]) -> Result:
    draw = seconds.pop("draw ids")
    gather, gather_3d = seconds.pop("gather"), seconds.pop("gather 3-D") + draw * BATCH_3D / BATCH
    copy, copy_3d = seconds.pop("byte copy"), seconds.pop("byte copy 3-D")
    mapped = {
        f"{name}: share of the speed without maps": plain / (seconds.pop(name) + draw_of)
        for name, plain, draw_of in (
            ("gather, 60 % mapped", gather + draw, draw),
            ("gather, all mapped", gather + draw, draw),
            ("gather 3-D, 60 % mapped", gather_3d, draw * BATCH_3D / BATCH),
            ("gather 3-D, all mapped", gather_3d, draw * BATCH_3D / BATCH),
        )
    }
    ours = BATCH / (gather + draw)
    peers = {name: BATCH / taken for name, taken in seconds.items()}
    best = {
        peer: max(rate for name, rate in peers.items() if name.startswith(peer))
        for peer in ("MONAI", "TorchIO", "crop loop")
    }
    rows = {
        "ours": ours,
        "byte copy": BATCH / copy,
        **peers,
        "ours, 3-D 64^3": BATCH_3D / gather_3d,
        "byte copy, 3-D 64^3": BATCH_3D / copy_3d,
        "3-D share of the limit": copy_3d / gather_3d,
        **mapped,
        "drawing the ids, share of a batch": draw / (draw + gather),
    }
    return Result(
        "sampling",
        "balanced patches of 4x64x64 per second",
        ours,
        BATCH / copy,
        "MONAI",
        ratios={peer: ours / rate for peer, rate in best.items()},
        share_of_limit=copy / (gather + draw),
        rows=rows,
    )
