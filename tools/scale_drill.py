"""Every stage on a Dask cluster whose workers are killed, beside one machine; what a case costs a cluster.

    python tools/scale_drill.py drill out --cases 60 --workers 4 --kill-every 30
    python tools/scale_drill.py overhead out --cases 1251 --workers 4
    python tools/scale_drill.py growth out

`drill` makes phantom cases, runs verify, preprocess, predict and evaluate on one machine and on a cluster of
processes (`dask scheduler`, `dask worker`), kills a worker by SIGKILL every so many seconds (each worker at
most once in a stage), and compares every byte. `overhead` sends empty cases through the cluster and measures
processor time and memory of the scheduler and of the client. `growth` draws docs/images/scale.png: the cost
of a case by workers, and the time of a draw of the sampler by classes. Each prints one line of JSON.
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from dask_processes import Processes, children, dask_processes  # noqa: E402

from brats_seg import pipeline  # noqa: E402
from brats_seg.bank.build import BuildOptions  # noqa: E402
from brats_seg.core.dask_engine import Cluster, open_cluster  # noqa: E402
from brats_seg.core.engine import map_unordered  # noqa: E402
from brats_seg.evaluation.folders import evaluate_folders  # noqa: E402
from brats_seg.imbalance.index import ClassIndex  # noqa: E402
from brats_seg.imbalance.samplers import make_sampler  # noqa: E402
from brats_seg.inference.options import PredictOptions  # noqa: E402
from brats_seg.phantoms.cohort import write_cohort  # noqa: E402
from brats_seg.reporting import style  # noqa: E402
from brats_seg.reporting.plots import png  # noqa: E402

PREDICT = PredictOptions(device="cpu", precision="float32")
IGNORED = ("predictions.csv",)  # its column of seconds


class Killer(threading.Thread):
    """Kills a computing process every so many seconds, one worker after another; a stage has one killer."""

    def __init__(self, processes: Processes, every_s: float) -> None:
        super().__init__(daemon=True)
        self.processes, self.every_s, self.ended, self.n_kills = processes, every_s, threading.Event(), 0

    def end(self) -> int:
        """Stop; how many processes were killed."""
        self.ended.set()
        self.join()
        return self.n_kills

    def run(self) -> None:
        """Kill until `ended` is set, or each worker was killed."""
        spared = list(self.processes.workers)
        while spared and not self.ended.wait(self.every_s):
            for nanny in spared:
                if pids := children(nanny.pid):
                    os.kill(pids[0], signal.SIGKILL)
                    self.n_kills += 1
                    spared.remove(nanny)
                    break


def stages(
    root: Path, out: Path, *, cluster: Cluster | None = None, killer: Callable[[], Killer] | None = None
) -> tuple[dict[str, float], dict[str, int]]:
    """Run the four stages into a folder; seconds and kills of each."""

    def verify() -> None:
        report = pipeline.verify_scans(root / "scans", cluster=cluster)
        (out / "verify.json").write_text(json.dumps(report.to_dict(), default=str))

    def preprocess() -> None:
        built = pipeline.preprocess(
            root / "scans", out / "bank", options=BuildOptions(n_folds=5), cluster=cluster
        )
        assert built.exit_code == 0, built.problems

    def predict() -> None:
        done = pipeline.predict("starter", root / "scans", out / "out", options=PREDICT, cluster=cluster)
        assert done.exit_code == 0, done.problems

    def evaluate() -> None:
        scored = evaluate_folders(out / "out", root / "scans", output=out / "scores", cluster=cluster)
        assert scored.exit_code == 0, scored.problems

    seconds, kills = {}, {}
    for stage in (verify, preprocess, predict, evaluate):
        start, killing = time.monotonic(), killer() if killer else None
        stage()
        seconds[stage.__name__] = round(time.monotonic() - start, 1)
        kills[stage.__name__] = killing.end() if killing else 0
    return seconds, kills


def count_submissions(cluster: Cluster) -> list[None]:
    """A list that grows by one element for each task that is sent to a worker."""
    sent: list[None] = []
    submit = cluster.client.submit

    def counted(*job: object, **options: object) -> object:
        sent.append(None)
        return submit(*job, **options)

    cluster.client.submit = counted
    return sent


def contents(folder: Path) -> dict[str, bytes]:
    """Every file that a reader sees, without those that hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".") and path.name not in IGNORED
    }


def drill(root: Path, *, cases: int, size: int, workers: int, kill_every: float) -> dict[str, object]:
    """The four stages on one machine and on a cluster whose workers are killed."""
    write_cohort(root / "scans", n_cases=cases, layout="brats2021", size=size, seed=0)
    local, shared = root / "local", root / "shared"
    for folder in (local, shared):
        folder.mkdir()
    result: dict[str, object] = {"name": "drill", "cases": cases, "workers": workers}
    result["seconds_one_machine"], _ = stages(root, local)
    with (
        dask_processes(root, workers=workers) as processes,
        open_cluster(str(processes.file), shared=shared) as cluster,
    ):

        def killer() -> Killer:
            started = Killer(processes, kill_every)
            started.start()
            return started

        sent = count_submissions(cluster)
        result["seconds_cluster"], result["kills"] = stages(root, shared, cluster=cluster, killer=killer)
    result["further_executions"] = len(sent) - 4 * cases
    result["same_bytes"] = contents(local) == contents(shared)
    return result


def empty_case(number: int) -> int:
    """What every worker does in `overhead`."""
    return number


def overhead(root: Path, *, cases: int, workers: int) -> dict[str, object]:
    """Processor time and memory of the scheduler and of the client, for cases that cost nothing."""
    root.mkdir(parents=True, exist_ok=True)
    with (
        dask_processes(root, workers=workers) as processes,
        open_cluster(str(processes.file), shared=root) as cluster,
    ):
        both = {"scheduler": psutil.Process(processes.scheduler.pid), "client": psutil.Process()}
        warm = list(map_unordered(empty_case, range(50), workers=1, cluster=cluster))
        before = {name: (sum(p.cpu_times()[:2]), p.memory_info().rss) for name, p in both.items()}
        start = time.monotonic()
        done = list(map_unordered(empty_case, range(cases), workers=1, cluster=cluster))
        wall = time.monotonic() - start
        after = {name: (sum(p.cpu_times()[:2]), p.memory_info().rss) for name, p in both.items()}
    assert (len(warm), len(done)) == (50, cases)
    result: dict[str, object] = {"name": "overhead", "cases": cases, "workers": workers}
    result["wall_ms_a_case"] = round(wall / cases * 1e3, 2)
    for name in both:
        (cpu_0, rss_0), (cpu_1, rss_1) = before[name], after[name]
        result[f"{name}_cpu_ms_a_case"] = round((cpu_1 - cpu_0) / cases * 1e3, 2)
        result[f"{name}_memory_growth_mb"] = round((rss_1 - rss_0) / 1e6, 1)
    return result


def draw_us(cases: int, classes: int) -> float:
    """Microseconds of a balanced batch of 64: an epoch of 1,000 batches, drawn as a whole at its first batch.
    The median of 9 epochs; each class of a case has 1,000 voxels.
    """
    counts = np.full((cases, classes), 1000)
    voxels = np.zeros(1000 * classes, np.uint32)
    names = [f"class {k}" for k in range(classes)]
    index = ClassIndex(names, counts, part=lambda case: voxels, case_ids=np.arange(cases) << 32)
    seconds = []
    for seed in range(10):
        sampler = make_sampler("balanced", index, batch_size=64, steps=1000, seed=seed)
        start = time.perf_counter()
        for _ in range(1000):
            sampler.next()
        seconds.append(time.perf_counter() - start)
    return float(1e3 * np.median(seconds[1:]))


def growth(root: Path) -> dict[str, object]:
    """How the costs grow, as a picture and as numbers."""
    sizes = (100, 400, 1251)
    shared = {
        workers: [
            overhead(root / f"{workers}_{n}", cases=n, workers=workers)["wall_ms_a_case"] for n in sizes
        ]
        for workers in (1, 2, 4)
    }
    drawn = {classes: [round(draw_us(n, classes), 1) for n in sizes] for classes in (3, 5, 9)}
    figure, axes = style.panels(1, 2, width=3.4)
    for axis, lines, what, heading in (
        (axes[0, 0], shared, "workers", "A Dask cluster: ms a case on top"),
        (axes[0, 1], drawn, "classes", "The sampler: microseconds a batch of 64"),
    ):
        for (n, values), color in zip(lines.items(), style.SERIES, strict=False):
            axis.plot(sizes, values, color=color, marker="o", label=f"{n} {what if n > 1 else what[:-1]}")
        style.title(axis, heading)
        axis.set_xlabel("cases")
        axis.set_ylim(bottom=0)
        style.legend_inside(axis)
    (ROOT / "docs" / "images" / "scale.png").write_bytes(png(figure))
    return {
        "name": "growth",
        "cases": sizes,
        "ms a case by workers": shared,
        "microseconds a batch by classes": drawn,
    }


def main() -> None:
    """See the top of the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["drill", "overhead", "growth"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--kill-every", type=float, default=30.0)
    asked = parser.parse_args()
    if asked.what == "drill":
        result = drill(
            asked.out, cases=asked.cases, size=asked.size, workers=asked.workers, kill_every=asked.kill_every
        )
    elif asked.what == "growth":
        result = growth(asked.out)
    else:
        result = overhead(asked.out, cases=asked.cases, workers=asked.workers)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
