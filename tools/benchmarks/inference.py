"""One full-size volume, normalized, to its label map by the reference 2-D U-Net."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from monai.inferers import SlidingWindowInferer
from torch import Tensor, nn

from benchmarks.cohort import classes_of, find_scans
from benchmarks.measure import Contender, Result, interleave
from benchmarks.reference import channels_last, flops_of, reference_network
from brats_seg.bank.normalize import NormalizedCase, normalize
from brats_seg.core.runtime import Runtime, start_runtime
from brats_seg.inference.dense import SLICES, Feed, label_map
from brats_seg.inference.ready import ready_for_inference
from brats_seg.scans.loaded import load_case

PRECISIONS: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16}
DIVISOR = 16
SW_BATCH = 120
CONVOLUTIONS = ((32, 176, 144), (64, 88, 72), (128, 44, 36), (256, 22, 18))
"""Channels and sides of 3x3 convolutions, those of the network's four levels; each 2 * 9 * channels^2 * Y * X
* `SLICES` FLOP.
"""


def run(*, work: Path, quick: bool) -> Result:
    """Ours in float32 and bf16 beside MONAI's sliding windows, as documented and at their best, and the
    machine's own convolutions.
    """
    cases = find_scans(work, n_cases=1)
    case = normalize(load_case(cases[0]))
    network = reference_network(len(classes_of(cases)))
    ours = {name: our_labels(network, case, dtype=dtype) for name, dtype in PRECISIONS.items()}
    theirs = _monais(network, case)
    contenders = [
        *(Contender(f"ours, {name}", labels) for name, labels in ours.items()),
        *(Contender(name, labels) for name, labels in theirs.items()),
        *_convolutions(),
    ]
    seconds = interleave(contenders, rounds=1 if quick else 5)
    agreement = {
        f"labels as MONAI at its best, float32: ours, {name}": _agreement(case, labels(), theirs)
        for name, labels in ours.items()
    }
    sides = [-(-n // DIVISOR) * DIVISOR for n in case.image.shape[1:3]]
    return _result(seconds, flops_of(network, 1, 4, *sides) * case.image.shape[0], agreement)


def our_labels(network: nn.Module, case: NormalizedCase, *, dtype: torch.dtype) -> Callable[[], np.ndarray]:
    """Label map of the crop, from its float16 image."""
    runtime = Runtime(torch.device("cpu"), None if dtype == torch.float32 else dtype, torch.get_num_threads())
    ready = ready_for_inference(network, runtime=runtime)
    return lambda: label_map(ready, case.image, feed=Feed(divisor=DIVISOR))


def sliding(
    network: nn.Module, inputs: Tensor, *, window: tuple[int, ...], overlap: float, batch: int
) -> Callable[[], Tensor]:
    """MONAI's SlidingWindowInferer over all slices, and the likeliest class."""
    inferer: Callable[..., Any] = SlidingWindowInferer(
        window, sw_batch_size=batch, overlap=overlap, mode="constant"
    )

    def labels() -> Tensor:
        with torch.inference_mode():
            return cast(Tensor, inferer(inputs, network).argmax(1).to(torch.uint8))

    return labels


def convolving(channels: int, sides: tuple[int, int], *, dtype: torch.dtype) -> Callable[[], object]:
    """One 3x3 convolution of `SLICES` images, channels last."""
    layer = channels_last(nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(dtype))
    inputs = torch.randn(SLICES, channels, *sides).to(dtype=dtype, memory_format=torch.channels_last)

    def convolve() -> Tensor:
        with torch.inference_mode():
            return layer(inputs)

    return convolve


def _monais(network: nn.Module, case: NormalizedCase) -> dict[str, Callable[[], Tensor]]:
    """As documented: the full frame, windows of 64x64. At its best: the brain's crop as one window a slice,
    in our layout and precision.

    Weights are channels last for all of them, which is faster here; cropping, padding and conversion are done
    before the clock runs.
    """
    crop = torch.from_numpy(np.ascontiguousarray(np.moveaxis(case.image, -1, 1), dtype=np.float32))
    n_z, _, n_y, n_x = crop.shape
    z, y, x = case.origin
    frame = torch.zeros(case.grid_shape[0], 4, *case.grid_shape[1:])
    frame[z : z + n_z, :, y : y + n_y, x : x + n_x] = crop
    padded = torch.zeros(n_z, 4, *(-(-n // DIVISOR) * DIVISOR for n in (n_y, n_x)))
    padded[:, :, :n_y, :n_x] = crop
    plain = channels_last(copy.deepcopy(network))
    theirs = {
        f"MONAI, 64x64, overlap {overlap}": sliding(
            plain, frame, window=(64, 64), overlap=overlap, batch=SW_BATCH
        )
        for overlap in (0.5, 0.25)
    }
    for name, dtype in PRECISIONS.items():
        inputs = padded.to(dtype=dtype, memory_format=torch.channels_last)
        cast = copy.deepcopy(plain).to(dtype)
        theirs[f"MONAI at its best, {name}"] = sliding(
            cast, inputs, window=tuple(padded.shape[2:]), overlap=0.0, batch=SLICES
        )
    return theirs


def _agreement(case: NormalizedCase, ours: np.ndarray, theirs: dict[str, Callable[[], Tensor]]) -> float:
    """Share of the brain's voxels with the same label as MONAI at its best in float32; what it makes of the
    air does not count.
    """
    n_y, n_x = ours.shape[1:]
    brain = (case.image != 0).any(-1)
    labels = theirs["MONAI at its best, float32"]()[:, :n_y, :n_x].numpy()
    return float((labels == ours)[brain].mean())


def _convolutions() -> list[Contender]:
    return [
        Contender(f"conv {name} {channels}", convolving(channels, (n_y, n_x), dtype=dtype), per_turn=5)
        for name, dtype in PRECISIONS.items()
        for channels, n_y, n_x in CONVOLUTIONS
    ]


def _result(seconds: dict[str, float], flops: float, agreement: dict[str, float]) -> Result:
    """`flops` of the slices asked for: the filling of the last batch does not count as work done."""
    peak = {}
    for name in PRECISIONS:
        peak[name] = max(
            2 * 9 * c**2 * n_y * n_x * SLICES / seconds.pop(f"conv {name} {c}")
            for c, n_y, n_x in CONVOLUTIONS
        )
    automatic = "bf16" if start_runtime(device="cpu").dtype_autocast == torch.bfloat16 else "float32"
    ours = 1 / seconds[f"ours, {automatic}"]
    limit = peak[automatic] / flops
    rates = {name: 1 / taken for name, taken in seconds.items()}
    ratios = {"MONAI": ours / rates["MONAI, 64x64, overlap 0.5"]}
    for name in PRECISIONS:
        for overlap in ("0.5", "0.25"):
            ratios[f"MONAI, 64x64, overlap {overlap}; ours {name}"] = (
                rates[f"ours, {name}"] / rates[f"MONAI, 64x64, overlap {overlap}"]
            )
        ratios[f"MONAI at its best; both {name}"] = (
            rates[f"ours, {name}"] / rates[f"MONAI at its best, {name}"]
        )
    rows = {f"{name}, s": taken for name, taken in seconds.items()} | {"GFLOP a volume": flops / 1e9}
    for name in PRECISIONS:
        rows[f"conv 3x3 {name}, GFLOP/s"] = peak[name] / 1e9
        rows[f"ours, {name}, GFLOP/s"] = flops * rates[f"ours, {name}"] / 1e9
        rows[f"ours, {name}, share of the limit"] = flops * rates[f"ours, {name}"] / peak[name]
    return Result(
        "inference", f"volumes per second (ours: {automatic}, the automatic precision "
                     "here)", ours, limit, "MONAI",
        ratios=ratios, share_of_limit=ours / limit, rows=rates | rows | agreement,
    )  # fmt: skip
