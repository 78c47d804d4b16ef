"""Speed, ours beside the peers and the physical limit, in one run.

    python tools/benchmark.py sampling --quick     under a minute
    python tools/benchmark.py stall
    python tools/benchmark.py inference | reading | scoring
    python tools/benchmark.py predict --cases 50
    python tools/benchmark.py train --device cuda
    python tools/benchmark.py precision --run RUN --run RUN --scans FOLDER     no speed: what bfloat16 and
    windows cost in Dice

Needs the `bench` extra for the peers of `sampling` and `stall`. Makes what it needs (10 full-size cases,
about 0.4 GB, and some of them again as .nii.gz) in a temporary folder, or keeps it in --work. Where
BRATS_SEG_DATA names a folder with real cases in brats/, `inference`, `reading`, `scoring` and `predict`
measure on those. Ends with one line of JSON. Absolute times mean little on a shared machine; the ratios come
from one run, interleaved, medians.
"""

import argparse
import importlib
import tempfile
import warnings
from pathlib import Path

import torch
from benchmarks import precision
from benchmarks.measure import report

from brats_seg.core.cores import n_cores
from brats_seg.core.runtime import set_allocator

BENCHMARKS = (
    "sampling", "stall", "inference", "reading", "scoring", "predict", "train", "precision", "study",
)  # fmt: skip


def main() -> None:
    """Run one benchmark and print its table and its line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true", help="fewer rounds: under a minute")
    parser.add_argument(
        "--work", type=Path, help="folder to keep the cases and the bank in, for the next run"
    )
    parser.add_argument("--threads", type=int, default=n_cores(), help="for everyone (default: the cores)")
    parser.add_argument("--device", default="cpu", help="train: cpu or cuda (default: cpu)")
    parser.add_argument(
        "--cases", type=int, default=0, help="predict: segment this many (repeated) and watch the memory"
    )
    parser.add_argument(
        "--run", type=Path, action="append", help="precision: a trained run; repeat for several"
    )
    parser.add_argument(
        "--scans",
        type=Path,
        help="precision: the annotated scans that the runs were trained on and held out from",
    )
    parser.add_argument(
        "--all-cases", action="store_true", help="precision: also the cases that a run was trained on"
    )
    arguments = parser.parse_args()
    if arguments.name == "precision" and not (arguments.run and arguments.scans):
        parser.error("precision needs --run and --scans")
    more = {"train": {"device": arguments.device}, "predict": {"n_cases": arguments.cases}}.get(
        arguments.name, {}
    )
    warnings.filterwarnings("ignore")  # the peers' own
    set_allocator()
    torch.set_num_threads(arguments.threads)
    if arguments.name == "precision":
        print(precision.run(arguments.run, arguments.scans, all_cases=arguments.all_cases))
        return
    # by its name: torchio, which only some peers need, may be absent
    benchmark = importlib.import_module(f"benchmarks.{arguments.name}")
    with tempfile.TemporaryDirectory() as scratch:
        print(report(benchmark.run(work=arguments.work or Path(scratch), quick=arguments.quick, **more)))


if __name__ == "__main__":
    main()
