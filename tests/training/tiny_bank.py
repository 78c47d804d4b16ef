"""A bank of a few small cases, written file by file, and the knobs of a run that takes seconds."""

import hashlib
import json
import multiprocessing
import socket
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from brats_seg.bank.bank import PatchBank
from brats_seg.core.config import Config, parse_config
from brats_seg.core.runtime import Runtime, start_runtime
from brats_seg.training.split import RunResult, Split
from brats_seg.training.train import train

CLASSES = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
MODALITIES = ("t1n", "t1c", "t2w", "t2f")
SPLIT = Split(train=("A", "B", "C"), inner=("D",), held_out=("E", "F"), fold=0)
KNOBS: dict[str, Any] = {
    "network": {"channels": (8, 16), "num_res_units": 0},
    "patch": {"size": (16, 16)},
    "sampler": {"kind": "hard"},
    "hard": {"threshold": 0.9},
    "augment": {
        "rotate_degrees": 20,
        "scale": (0.8, 1.2),
        "gain": (0.8, 1.2),
        "gamma": (0.8, 1.3),
        "noise_sd": (0.0, 0.1),
    },
    "training": {"epochs": 3, "steps": 6, "batch_size": 10, "ema": 0.9, "precision": "float32", "threads": 1},
}


def start_child(function: Callable[..., Any], *args: Any) -> ForkServerProcess:
    """A process of its own; what takes seconds to import is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    # an optimizer imports torch._dynamo
    context.set_forkserver_preload(["brats_seg.training.train", "torch._dynamo", "pandas", "pytest"])
    process = context.Process(target=function, args=args)
    process.start()
    return process


def free_port() -> int:
    """A port for ranks that wait for each other."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def write_bank(
    path: Path,
    *,
    names: tuple[str, ...] = ("A", "B", "C", "D", "E", "F"),
    shape: tuple[int, int, int] = (5, 32, 24),
) -> Path:
    """Cases of nested boxes of tissue in a brain with a rim of air; each class has its own mean in each
    modality.
    """
    entries = []
    for number, name in enumerate(names):
        random = np.random.default_rng(number)
        label = np.full(shape, 255, np.uint8)
        label[:, 2:-2, 2:-2] = 0
        label[1:, 8:24, 6:20] = 2
        label[1:, 10:20, 8:16] = 4
        label[2:, 12:18, 9:15] = 3
        label[2:4, 13:16, 10:13] = 1
        means = np.array([[0, 0, 0, 0], [-1, -2, 1, 0], [-1, 0, 2, 2], [-1, 0, 1, 1], [0, 3, 1, 1]])
        image = means[np.where(label == 255, 0, label)] + random.normal(0, 0.7, (*shape, 4))
        image[label == 255] = 0
        flat = label.ravel()
        order = np.concatenate([np.flatnonzero(flat == k) for k in range(len(CLASSES))]).astype(np.uint32)
        folder = path / "cases" / name
        folder.mkdir(parents=True)
        for file, array in (
            ("image.npy", image.astype(np.float16)),
            ("label.npy", label),
            ("voxels.npy", order),
        ):
            np.save(folder / file, array)
        files = [folder / file for file in ("image.npy", "label.npy", "voxels.npy")]
        counts = np.bincount(flat[flat != 255], minlength=len(CLASSES))
        entries.append(
            {
                "id": name,
                "patient": name,
                "schema": "brats2013",
                "shape": shape,
                "origin": (0, 0, 0),
                "grid_shape": shape,
                "spacing_mm": (1.0, 1.0, 1.0),
                "counts": counts.tolist(),
                "offsets": [0, *np.cumsum(counts).tolist()],
                "bytes": [f.stat().st_size for f in files],
                "sha256": [hashlib.sha256(f.read_bytes()).hexdigest() for f in files],
            }
        )
    tree = {
        "schema_version": 1, "classes": CLASSES, "modalities": MODALITIES, "spacing_mm": (1.0, 1.0, 1.0),
        "normalization": {"percentiles": [0.5, 99.5], "n4": False}, "cases": entries, "folds": "0" * 64,
    }  # fmt: skip
    (path / "bank.json").write_text(json.dumps(tree))
    return path


def knobs(**sections: dict[str, Any]) -> Config:
    """`KNOBS` with some knobs of some sections changed."""
    return parse_config(
        {name: KNOBS.get(name, {}) | sections.get(name, {}) for name in {**KNOBS, **sections}}
    )


def run(
    run_dir: Path,
    bank: Path,
    config: Config,
    *,
    split: Split = SPLIT,
    resume: bool = False,
    runtime: Runtime | None = None,
) -> RunResult:
    """Train with a whole config on the CPU."""
    return train(
        run_dir,
        bank=PatchBank(bank, patch_size=config.patch.size, slices_around=config.patch.slices_around),
        split=split,
        config=config,
        runtime=runtime
        or start_runtime(device="cpu", precision=config.training.precision, threads=config.training.threads),
        resume=resume,
    )
