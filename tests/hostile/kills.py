"""Verbs killed at random moments and given again: results as if never killed, and no file left behind.

    python tests/hostile/kills.py OUT --kills 240 [--only preprocess,train]

Every trial is two processes forked from this one, in which all libraries are loaded: one that is killed, and one that goes on.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch

from brats_seg import pipeline
from brats_seg.bank.build import build_bank
from brats_seg.config import Config, load_config
from brats_seg.core.files import read_table
from brats_seg.scans.phantom import write_cohort
from brats_seg.training.checkpoint import load_checkpoint

KNOBS = (
    "network={name: unet2d, channels: [4, 8], num_res_units: 0}",
    "patch.size=[16, 16]",
    "training={epochs: 3, steps: 4, batch_size: 4, precision: float32, threads: 1, checkpoint_minutes: 0.001}",
    "validation.metric=last",
)


@dataclass(frozen=True)
class Verb:
    """A verb that writes into a folder: what it does, and what of the folder has to be the same in the end."""

    run: Callable[[Path], Any]
    result: Callable[[Path], Any]


def make_verbs(work: Path) -> dict[str, Verb]:
    """The verbs on a small cohort in `work`, which is made if it is not there."""
    scans, bank, run, out = (work / name for name in ("scans", "bank", "run", "out"))
    config = load_config(overrides=KNOBS)

    def prepare() -> None:
        write_cohort(scans, n_cases=4, layout="brats2023", size=48, seed=0)
        build_bank(scans, bank, n_folds=2)
        _train(bank, run, config)
        pipeline.predict(run, scans, out, device="cpu")

    if not out.exists():
        _finish(prepare)
    return {
        "preprocess": Verb(lambda to: build_bank(scans, to / "bank", n_folds=2), lambda to: _files(to / "bank", leave_out=("case.json",))),
        "train": Verb(lambda to: _train(bank, to / "run", config), lambda to: _trained(to / "run")),
        "predict": Verb(
            lambda to: pipeline.predict(run, scans, to / "out", device="cpu", skip_finished=True), lambda to: _predicted(to / "out")
        ),
        "evaluate": Verb(lambda to: pipeline.evaluate(out, scans, output=to), lambda to: _files(to)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=10, help="of each verb")
    parser.add_argument("--only", default="", help="verbs, by comma")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {}
    for name, verb in make_verbs(asked.out / "work").items():
        if asked.only and name not in asked.only.split(","):
            continue
        start = time.monotonic()
        wanted = _whole(verb, asked.out / "whole" / name)
        seconds = time.monotonic() - start
        fates: Counter[str] = Counter()
        for number in range(asked.kills):
            fates[_trial(verb, asked.out / "trial", wanted, seconds=seconds, dice=random.Random(f"{name} {number}"))] += 1
            counts[name] = dict(fates)
            (asked.out / "counts.json").write_text(json.dumps(counts, indent=1))
        print(f"{name}: {dict(fates)}, a whole run {seconds:.2f} s", flush=True)


def _whole(verb: Verb, folder: Path) -> Any:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _finish(lambda: verb.run(folder))
    return verb.result(folder)


def _trial(verb: Verb, folder: Path, wanted: Any, *, seconds: float, dice: random.Random) -> str:
    """What became of a verb killed once or twice: "same", or what is wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    n_killed = 0
    for _ in range(dice.choice((1, 1, 2))):
        child = _fork(lambda: verb.run(folder))
        time.sleep(dice.random() * seconds)
        os.kill(child, signal.SIGKILL)
        n_killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    try:
        _finish(lambda: verb.run(folder))
        found = verb.result(folder)
    except Exception as error:
        return f"ends with {' '.join(str(error).split())[:200]}"
    rests = [path.name for path in folder.rglob("*") if ".part" in path.name and not path.name.endswith(".lock")]
    if rests:
        return f"leaves {rests[0]}"
    if found != wanted:
        return "other results"
    return "same" if n_killed else "not killed: it had ended"


def _fork(function: Callable[[], Any]) -> int:
    child = os.fork()
    if child:
        return child
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    try:
        function()
        os._exit(0)
    except BaseException:
        traceback.print_exc(file=sys.stderr)
        os._exit(1)


def _finish(function: Callable[[], Any]) -> None:
    _, status = os.waitpid(_fork(function), 0)
    if status:
        raise RuntimeError(f"a process ended with {status}")


def _train(bank: Path, run: Path, config: Config) -> None:
    pipeline.train(bank, run, config, fold=0, device="cpu", resume=run.exists())


def _files(folder: Path, *, leave_out: tuple[str, ...] = ()) -> dict[str, str]:
    """Digest of every visible file."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in leave_out)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths if not path.name.startswith(".")}


def _trained(run: Path) -> Any:
    """Weights of the last checkpoint, and the tables without clock times."""
    weights = load_checkpoint(run / "checkpoint_last.pt").weights
    digest = hashlib.sha256(b"".join(tensor.numpy().tobytes() for tensor in weights.values())).hexdigest()
    names = sorted(path.name for path in run.iterdir() if not path.name.startswith("."))
    return digest, names, _files(run, leave_out=("timing.csv", "environment.json", "checkpoint_last.pt", "checkpoint_best.pt"))


def _predicted(out: Path) -> Any:
    _, rows = read_table(out / "predictions.csv")
    told = sorted(tuple((key, value) for key, value in row.items() if key != "seconds") for row in rows)
    return told, _files(out, leave_out=("predictions.csv",))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
