"""What a GPU does with this package, measured in five minutes: `OUT/device.json` and `OUT/device.md`.

    python tools/device_check.py out --scans FOLDER          one H100-class card
    python tools/device_check.py out --device cpu --scale 0.01    try it without a card

Each step is a process with its own time limit. A step that fails, or whose packages are missing, is a row
that says why; the others go on. The first line says which packages exist. A figure of a whole study or
training is extrapolated from a window of 20 seconds, and marked so. `--scale` makes windows, batches, patches
and phantoms smaller: then the figures mean nothing; they show that the steps run.
"""

import argparse
import importlib.metadata
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "numpy", "numba", "monai", "nibabel", "scipy", "pydantic", "pytest")
STACKS = (1, 8, 32, 128)
WINDOW_S = 20.0
Rows = dict[str, float | str]


@dataclass(frozen=True)
class Job:
    """Where to measure: folder, scans (None makes phantoms), device, and the scale of all sizes."""

    out: Path
    scans: Path | None
    device: str
    scale: float

    @property
    def window_s(self) -> float:
        """Seconds that a rate is measured over."""
        return max(0.2, WINDOW_S * self.scale)

    def sized(self, full: int, *, least: int) -> int:
        """A size at this scale."""
        return max(least, round(full * self.scale))


def tests(job: Job) -> Rows:
    """The tests that hold the GPU path. They run on the CPU, with stand-ins for the GPU."""
    files = ["tests/core/test_runtime.py", "tests/training/test_waiting.py", "tests/training/test_step.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    last = (ended.stdout.strip() or ended.stderr.strip() or "no output").splitlines()[-1]
    return {"tests (CPU stand-ins)": last if ended.returncode == 0 else f"failed: {last}"}


def bank(job: Job) -> Rows:
    """The bank that the other steps use."""
    from brats_seg import pipeline
    from brats_seg.bank.build import BuildOptions
    from brats_seg.phantoms.cohort import write_cohort

    scans, start = job.scans, time.perf_counter()
    if scans is None:
        scans = job.out / "scans"
        size = job.sized(160, least=48)
        write_cohort(scans, n_cases=job.sized(8, least=2), layout="brats2021", size=size, seed=0)
    built = pipeline.preprocess(scans, job.out / "bank", options=BuildOptions(n_folds=2))
    return {"cases": float(len(built.done) + len(built.skipped)), "bank, s": time.perf_counter() - start}


def steps_2d(job: Job) -> Rows:
    """Steps of the published 2-D network, and what the sampling study would take."""
    overrides = () if job.scale == 1 else ("training.batch_size=8", "patch.size=[32,32]")
    rows, per_step, batch = _steps(job, "unet2d", overrides)
    hours = 3 * 6e6 / batch * per_step / 3600
    return rows | {"sampling study, 3 x 6 million patches, minutes (extrapolated)": 60 * hours}


def steps_3d(job: Job) -> Rows:
    """Steps of the 3-D network on patches of 128 voxels a side, two at a time."""
    side = 128 if job.scale == 1 else 32
    overrides = (f"patch.size=[{side},{side},{side}]", "training.batch_size=2")
    rows, per_step, _ = _steps(job, "recipe3d", overrides)
    return rows | {"250 iterations, s (extrapolated)": 250 * per_step}


def _steps(job: Job, name: str, overrides: tuple[str, ...]) -> tuple[Rows, float, int]:
    """Our step, and the same step on a fixed batch, in turn; seconds of ours, and the batch size."""
    from benchmarks.train import fixed_step, our_step

    from brats_seg.bank.bank import PatchBank
    from brats_seg.core.config import load_config
    from brats_seg.core.runtime import start_runtime

    config = load_config(name, overrides=overrides)
    runtime = start_runtime(device=job.device, precision=config.training.precision)
    opened = PatchBank(job.out / "bank", patch_size=config.patch.size)
    ours = our_step(opened, config, runtime, augment=config.augment)
    fixed = fixed_step(opened, config, runtime)
    with runtime.one_shape():
        seconds = _in_turn(job, {"ours": ours, "fixed": fixed})
    return (
        {
            f"{name}, step, ms": 1e3 * seconds["ours"],
            f"{name}, step to a fixed batch": seconds["ours"] / seconds["fixed"],
            f"{name}, patches a second": config.training.batch_size / seconds["ours"],
            f"{name}, arithmetic": str(runtime.dtype_autocast or "float32").removeprefix("torch."),
        },
        seconds["ours"],
        config.training.batch_size,
    )


def inference(job: Job) -> Rows:
    """Whole volumes by the 2-D network, beside MONAI's sliding windows on the same device."""
    import numpy as np
    import torch
    from monai.inferers import SlidingWindowInferer

    from brats_seg.bank.bank import PatchBank
    from brats_seg.core.config import load_config
    from brats_seg.core.runtime import start_runtime
    from brats_seg.inference.dense import Feed, label_map
    from brats_seg.inference.ready import ready_for_inference
    from brats_seg.models.networks import make_network

    runtime, config = start_runtime(device=job.device), load_config("unet2d")
    opened = PatchBank(job.out / "bank", patch_size=(32, 32))
    n_classes = len(opened.classes)
    network = make_network(config.network, n_channels=4, n_classes=n_classes, n_dims=2).eval()
    ready, image = ready_for_inference(network, runtime=runtime), np.asarray(opened.volume(0)[0])
    slices = torch.from_numpy(np.ascontiguousarray(np.moveaxis(image, -1, 1), np.float32)).to(runtime.device)
    theirs, inferer = network.to(runtime.device), SlidingWindowInferer((64, 64), 120, overlap=0.5)

    def monai() -> object:
        with torch.inference_mode(), runtime.autocast():
            return inferer(slices, theirs).argmax(1).to(torch.uint8).cpu()

    seconds = _in_turn(job, {"ours": lambda: label_map(ready, image, feed=Feed(divisor=16)), "MONAI": monai})
    return {f"whole volumes a second, {name}": 1 / taken for name, taken in seconds.items()}


def lenet(job: Job) -> Rows:
    """LeNet-5 as a study trains it, in stacks of several sizes: what the 22,500 networks of MNIST take."""
    import numpy as np

    from brats_seg.classification.image_set import ImageSet, Splits
    from brats_seg.classification.settings import StudySettings
    from brats_seg.studies.image_cells import time_iterations

    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (5000, 28, 28, 1), dtype=np.uint8)
    names = tuple(map(str, range(10)))
    digits = ImageSet("noise", pixels, generator.integers(10, size=5000), names, 1 / 255)
    settings, splits = StudySettings(), Splits(digits, digits, None)
    n, stacks = job.sized(30, least=3), STACKS if job.scale == 1 else (1, 2)
    rows: Rows = {}
    for stack in stacks:
        milliseconds, _ = time_iterations(settings, splits, device=job.device, n=n, stack=stack)
        rows[f"LeNet-5, {stack} together, networks an hour (extrapolated)"] = 3.6e6 / (1e4 * milliseconds)
    best = max(rows.values())
    return rows | {"22,500 networks at the best of these, hours (extrapolated)": 22_500 / float(best)}


def _in_turn(job: Job, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each call, in blocks in turn until the window is over; a first block is left out."""
    import torch

    def block(call: Callable[[], object], n: int) -> float:
        start = time.perf_counter()
        for _ in range(n):
            call()
        if torch.cuda.is_available() and job.device != "cpu":
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / n

    first = {name: block(call, 2) for name, call in calls.items()}
    n = max(1, int(0.05 * job.window_s / max(first.values())))
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + job.window_s * len(calls)
    while time.perf_counter() < end or not all(taken.values()):
        for name, call in calls.items():
            taken[name].append(block(call, n))
    return {name: statistics.median(times) for name, times in taken.items()}


STEPS: dict[str, tuple[Callable[[Job], Rows], float]] = {
    "tests": (tests, 60), "bank": (bank, 60), "steps_2d": (steps_2d, 70), "steps_3d": (steps_3d, 70),
    "inference": (inference, 60), "lenet": (lenet, 40),
}  # fmt: skip
"""Each step and its limit in seconds."""


def measured(name: str, arguments: list[str], *, limit_s: float) -> Rows:
    """The rows of a step that runs in a process of its own, or one row that says why there are none."""
    command = [sys.executable, __file__, *arguments, "--step", name]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired:
        return {name: f"not ended after {limit_s:.0f} s"}
    last = (ended.stdout.strip() or "{}").splitlines()[-1]
    if ended.returncode == 0:
        rows: Rows = json.loads(last)
        return rows
    why = (ended.stderr.strip() or "no message").splitlines()[-1]
    return {name: f"not installed: {why}" if "No module named" in why else f"failed: {why}"}


def packages() -> dict[str, str]:
    """Versions of the packages that the steps use."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def card(device: str) -> str:
    """Name of the card, or of the device."""
    command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name())"]
    ended = subprocess.run(command, capture_output=True, text=True)
    return ended.stdout.strip() if device != "cpu" and ended.returncode == 0 else device


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--scans", type=Path, help="annotated cases; phantoms by default")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--limit-factor", type=float, default=1.0, help="on the time limit of each step")
    parser.add_argument("--step", choices=STEPS, help="this step alone, in this process")
    asked = parser.parse_args()
    job = Job(asked.out, asked.scans, asked.device, asked.scale)
    if asked.step:
        sys.path[:0] = [str(ROOT), str(ROOT / "tools")]
        print(json.dumps(STEPS[asked.step][0](job)))
        return
    job.out.mkdir(parents=True, exist_ok=True)
    print(json.dumps(packages()), flush=True)
    found: dict[str, Any] = {
        "device": card(job.device),
        "scale": job.scale,
        "packages": packages(),
        "rows": {},
    }
    for name, (_, limit_s) in STEPS.items():
        start = time.perf_counter()
        found["rows"] |= measured(name, sys.argv[1:], limit_s=limit_s * asked.limit_factor)
        found["rows"][f"time of the step {name}, s"] = time.perf_counter() - start
        (job.out / "device.json").write_text(json.dumps(found, indent=1) + "\n")
    lines = [f"Measured on {found['device']} at scale {job.scale:g}.", "", "| what | value |", "|---|---|"]
    for name, value in found["rows"].items():
        lines.append(f"| {name} | {value if isinstance(value, str) else f'{value:.4g}'} |")
    (job.out / "device.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
