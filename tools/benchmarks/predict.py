"""A folder of cases from cold files to label maps on disk, beside the network alone; and the memory it
takes.
"""

import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.cohort import classes_of, find_scans
from benchmarks.measure import Result
from benchmarks.reference import reference_network
from brats_seg.bank.normalize import normalize
from brats_seg.core.runtime import start_runtime
from brats_seg.inference.dense import Feed, label_map
from brats_seg.inference.predict import predict_cases
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.segmenter import Segmenter
from brats_seg.scans.case import MODALITIES, Case
from brats_seg.scans.loaded import load_case


def run(*, work: Path, quick: bool, n_cases: int) -> Result:
    """Every case twice over, in the automatic precision; with `n_cases`, first as many in a row while the
    memory is watched.
    """
    found = find_scans(work, n_cases=2 if quick else 8)
    classes = classes_of(found)
    runtime = start_runtime(device="cpu")
    network = ready_for_inference(reference_network(len(classes)), runtime=runtime)
    segmenter = Segmenter(network=network, modalities=MODALITIES, classes=classes)
    out = work / "predictions"
    memory = _memory_rows(segmenter, repeated(found, n_cases), out / "memory") if n_cases else {}
    cases = repeated(found, 2 * len(found))
    folder_s, network_s = _alternate(segmenter, cases, out, rounds=2 if quick else 5)
    ours, limit = len(cases) / folder_s, len(cases) / network_s
    precision = (
        "float32" if runtime.dtype_autocast is None else str(runtime.dtype_autocast).removeprefix("torch.")
    )
    return Result(
        "predict",
        f"cases per second, {len(cases)} from cold files to NIfTI, {precision}",
        ours,
        limit,
        "the network alone",
        ratios={"the network alone": ours / limit},
        share_of_limit=ours / limit,
        rows={
            "ours": ours,
            "the network alone": limit,
            "a case, ms": 1000 / ours,
            "its network, ms": 1000 / limit,
            **memory,
        },
    )


def repeated(cases: Sequence[Case], n: int) -> list[Case]:
    """`n` cases, the same ones again and again under ids of their own."""
    return [replace(cases[i % len(cases)], id=f"{cases[i % len(cases)].id}_{i:03d}") for i in range(n)]


def forget(cases: Sequence[Case]) -> None:
    """Ask the system to drop the scans from its page cache, so that they come from the disk again."""
    for path in {file.path for case in cases for file in case.modalities.values()}:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@dataclass
class MemoryWatch:
    """Anonymous memory of this process over time: pairs (label maps written so far, bytes)."""

    folder: Path
    samples: list[tuple[int, int]] = field(default_factory=list)

    @contextmanager
    def watching(self, *, every_s: float = 0.05) -> Iterator[None]:
        """Take samples for the time of the block."""
        over = threading.Event()

        def sample() -> None:
            while not over.wait(every_s):
                self.samples.append((len(list(self.folder.glob("*.nii.gz"))), anonymous_bytes()))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def peak(self, first: float, last: float) -> float:
        """The most bytes while the share of label maps written was from `first` to below `last`; NaN where no
        sample was taken then.
        """
        total = max(n for n, _ in self.samples) + 1
        return max(
            (float(taken) for n, taken in self.samples if first <= n / total < last), default=float("nan")
        )


def anonymous_bytes() -> int:
    """RssAnon of this process (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def _memory_rows(segmenter: Segmenter, cases: Sequence[Case], out: Path) -> dict[str, float]:
    """In fifths of the run: flat means that the last is as the second (the first includes what is allocated
    once).
    """
    shutil.rmtree(out, ignore_errors=True)  # an earlier run's label maps would be counted
    before = anonymous_bytes()
    watch = MemoryWatch(out)
    with watch.watching():
        _predict(segmenter, cases, out)
    fifths = {
        f"RssAnon peak, fifth {i + 1} of {len(cases)} cases, GB": watch.peak(i / 5, (i + 1) / 5) / 1e9
        for i in range(5)
    }
    return {
        "RssAnon before, GB": before / 1e9,
        **fifths,
        "RssAnon, fifth 5 to fifth 2": watch.peak(0.8, 1) / watch.peak(0.2, 0.4),
    }


def _alternate(segmenter: Segmenter, cases: Sequence[Case], out: Path, *, rounds: int) -> tuple[float, float]:
    """Median seconds of a folder, and of the network alone on the same images, which lie in memory; after a
    round that does not count.
    """
    images = {case.folder: normalize(load_case(case)).image for case in cases}
    folder_s, network_s = [], []
    for turn in range(rounds + 1):
        target = out / f"round_{turn}"
        forget(cases)
        start = time.perf_counter()
        _predict(segmenter, cases, target)
        written = time.perf_counter()
        for case in cases:
            label_map(segmenter.network, images[case.folder], feed=Feed(divisor=segmenter.divisor))
        if turn:
            folder_s.append(written - start)
            network_s.append(time.perf_counter() - written)
    return statistics.median(folder_s), statistics.median(network_s)


def _predict(segmenter: Segmenter, cases: Sequence[Case], out: Path) -> None:
    report = predict_cases([segmenter], cases, out=out)
    if report.exit_code or len(report.predictions) != len(cases):
        raise SystemExit(f"predict: {report.summary()}: {'; '.join(map(str, report.problems))}")
