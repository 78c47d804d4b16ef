"""Six verbs are killed at random moments and given again: what they leave must be what one undisturbed run
leaves.

    OMP_NUM_THREADS=1 python tests/hostile/kills.py OUT --kills
    preprocess=240,predict=240,evaluate=240,train=100,experiment=90,study=90

OUT/trials.jsonl has a line for each trial, so that the same command goes on where it was; OUT/counts.json has
the counts by verb. The processes are forked from one that has every module loaded and has computed nothing
with more than one thread.
"""

import argparse
import contextlib
import fcntl
import gzip
import hashlib
import io
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from brats_seg import pipeline
from brats_seg.bank.build import BuildOptions
from brats_seg.cli import main as brats_seg
from brats_seg.core.config import load_config
from brats_seg.evaluation.folders import evaluate_folders
from brats_seg.inference.options import PredictOptions
from brats_seg.phantoms.cohort import write_cohort

SEED = 20261
SMALL = (
    "network.name=unet2d",
    "network.channels=[4,8]",
    "network.num_res_units=0",
    "patch.size=[32,32]",
    "training.epochs=3",
    "training.steps=4",
    "training.batch_size=8",
    "training.threads=1",
    "validation.every=1",
)
EXPERIMENT = """
base: demo
every:
  network: {name: unet2d, channels: [4, 8], num_res_units: 0}
  patch.size: [32, 32]
  training: {epochs: 2, steps: 2, batch_size: 8, threads: 1}
strategies:
  random: {sampler.kind: random}
  hard: {sampler.kind: hard}
folds: [0]
predict: {correct_priors: [0, 1]}
pictures: []
"""
STUDY = """
images: {name: npz}
base: 20
distributions: [{kind: step, rho: [4, 10], mu: [0.5]}]
methods: {baseline: {}, oversample: {two_phase: true}, undersample: {}}
training: {iterations: 20, batch_size: 8}
"""
CLOCKS = ("seconds", "seconds_a_run")
ONLY_THERE = (".png", ".html", ".md")
"""Pages and pictures tell times: it is enough that they are there."""


@dataclass(frozen=True)
class Verb:
    """A command, the same after a kill, and where under the trial's folder its results lie."""

    first: list[str]
    again: list[str]


@dataclass
class Trial:
    """What became of a trial: how often it was killed, and what was wrong then."""

    verb: str
    number: int
    kills: int
    problem: str = ""


def make_shop(shop: Path) -> None:
    """Scans, a bank, a run, predictions and images, all tiny."""
    write_cohort(shop / "scans", n_cases=6, layout="brats2021", size=48, seed=3)
    pipeline.preprocess(shop / "scans", shop / "bank", workers=1, options=BuildOptions(n_folds=3))
    pipeline.train(shop / "bank", shop / "run", load_config("demo", overrides=SMALL), fold=0, device="cpu")
    pipeline.predict(shop / "run", shop / "scans", shop / "predictions", options=PredictOptions(device="cpu"))
    evaluate_folders(shop / "predictions", shop / "scans", output=shop / "scores")  # compiled once for all
    for case in sorted((shop / "scans").iterdir())[3:]:  # three are enough to build a bank of and to segment
        (shop / "some").mkdir(exist_ok=True)
        shutil.copytree(case, shop / "some" / case.name)
    generator = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 30), ("test", 10)):
        arrays[f"{part}_labels"] = np.repeat(np.arange(4), n)
        arrays[f"{part}_images"] = generator.integers(0, 200, (4 * n, 20, 20), dtype=np.uint8)
    np.savez(shop / "images.npz", **arrays)
    (shop / "experiment.yaml").write_text(EXPERIMENT)
    (shop / "study.yaml").write_text(STUDY)


def make_verbs(shop: Path, out: Path) -> dict[str, Verb]:
    """The commands, by verb, that write to `out`."""
    sets = [text for knob in SMALL for text in ("--set", knob)]
    to_train = [
        "train", f"{shop}/bank", f"{out}", "--config", "demo", "--fold", "0", "--device", "cpu", *sets,
    ]  # fmt: skip
    to_predict = ["predict", f"{shop}/run", f"{shop}/some", f"{out}", "--device", "cpu"]
    one = ["--workers", "1"]
    plain = {
        "preprocess": ["preprocess", f"{shop}/some", f"{out}", *one],
        "evaluate": ["evaluate", f"{shop}/predictions", f"{shop}/scans", "--output", f"{out}"],
        "experiment": [
            "experiment",
            f"{shop}/bank",
            f"{out}",
            "--config",
            f"{shop}/experiment.yaml",
            "--device",
            "cpu",
            *one,
        ],
        "study": [
            "study",
            "run",
            f"{shop}/study.yaml",
            f"{out}",
            "--images",
            f"{shop}/images.npz",
            "--device",
            "cpu",
            *one,
        ],
    }
    return {name: Verb(argv, argv) for name, argv in plain.items()} | {
        "train": Verb(to_train, [*to_train, "--resume"]),
        "predict": Verb(to_predict, [*to_predict, "--continue"]),
    }


def start(argv: list[str], log: Path) -> int:
    """Run a command in a forked process; gives its id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.sched_setaffinity(
            0, {random.choice(sorted(os.sched_getaffinity(0)))}
        )  # one core: no further processes
        brats_seg(argv)
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException as error:
        os.write(2, f"{type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)


def run(argv: list[str], log: Path, *, kill_after_s: float | None = None) -> int:
    """Exit code of a command, -9 where it was killed before its end."""
    child, begun = start(argv, log), time.monotonic()
    while kill_after_s is not None and time.monotonic() - begun < kill_after_s:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    if kill_after_s is not None:
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def try_once(
    verb: Verb, name: str, number: int, *, out: Path, wanted: dict[str, str], length_s: float
) -> Trial:
    """Kill a command once to three times, give it again, and compare."""
    chance = random.Random(f"{SEED} {name} {number}")
    shutil.rmtree(out, ignore_errors=True)
    log = out.with_suffix(".log")
    log.unlink(missing_ok=True)
    trial, argv = Trial(name, number, 0), verb.first
    for _ in range(chance.choice((1, 1, 2, 3))):
        code = run(argv, log, kill_after_s=chance.uniform(0, 1.05 * length_s))
        if code != -signal.SIGKILL:
            trial.problem = f"ended with {code} by itself: {log.read_text()[-600:]}" if code else ""
            break
        trial.kills += 1
        argv = verb.again
    if not trial.problem and (code := run(verb.again, log)):
        trial.problem = f"ended with {code} when it was given again: {log.read_text()[-600:]}"
    if not trial.problem:
        trial.problem = "; ".join([*differences(outcome(out), wanted), *rests(out)])
    return trial


def outcome(out: Path) -> dict[str, str]:
    """What each file says, but for times, by its name."""
    return {
        str(path.relative_to(out)): said(path)
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def said(path: Path) -> str:
    """A digest of what a file says."""
    if path.suffix in ONLY_THERE or path.name in ("environment.json", "timing.csv", "train.log"):
        return "is there" if path.stat().st_size else "is empty"
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return digest(table[[name for name in table if name not in CLOCKS]].to_csv().encode())
    if path.suffix == ".gz":
        return digest(gzip.decompress(path.read_bytes()))
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            return digest(b"".join(name.encode() + arrays[name].tobytes() for name in sorted(arrays.files)))
    if path.suffix == ".pt":
        found = torch.load(path, weights_only=True)
        buffer = io.BytesIO()
        for name, weight in sorted(found["weights"].items()):
            buffer.write(name.encode() + weight.contiguous().numpy().tobytes())
        return digest(
            buffer.getvalue() + repr([found[key] for key in ("config", "epoch", "step", "score")]).encode()
        )
    if path.suffix == ".jsonl":
        return digest(
            "\n".join(
                sorted(repr(timeless(json.loads(line))) for line in path.read_text().splitlines())
            ).encode()
        )
    if path.suffix == ".json":
        return digest(repr(timeless(json.loads(path.read_text()))).encode())
    return digest(path.read_bytes())


def timeless(tree: Any) -> Any:
    """Plain types without what a clock said."""
    if isinstance(tree, dict):
        return {key: timeless(value) for key, value in tree.items() if key not in CLOCKS}
    return [timeless(value) for value in tree] if isinstance(tree, list) else tree


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def differences(found: dict[str, str], wanted: dict[str, str]) -> list[str]:
    """Files that are missing, too many or say something else."""
    return [f"{name}: {found.get(name, 'missing')}, not "
            f"{wanted.get(name, 'there')}" for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)]  # fmt: skip


def rests(out: Path) -> list[str]:
    """Temporary files, and locks that are still held."""
    found = [f"{path.name}: left behind" for path in out.rglob(".*.part*") if path.suffix != ".lock"]
    for path in out.rglob("*.lock"):
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                found.append(f"{path.name}: is held")
    return found


@contextlib.contextmanager
def into(log: Path) -> Iterator[None]:
    """Standard output to a file."""
    with log.open("a") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        yield


def sketch(figure: Figure, file: Any, *, save: Callable[..., None] = Figure.savefig, **how: Any) -> None:
    """Draw coarsely and without a layout: it is enough that a picture is there."""
    figure.set_layout_engine("none")
    save(figure, file, **how | {"dpi": 50, "bbox_inches": None})


def campaign(folder: Path, kills: dict[str, int], say: Callable[[str], None]) -> dict[str, dict[str, int]]:
    """Trials of each verb until it was killed so often; gives the counts."""
    torch.set_num_threads(1)
    Figure.savefig = sketch  # type: ignore[method-assign]
    folder.mkdir(parents=True, exist_ok=True)
    shop, out, notes = folder / "shop", folder / "trial", folder / "trials.jsonl"
    shutil.rmtree(shop, ignore_errors=True)
    shop.mkdir()
    with into(folder / "shop.log"):
        make_shop(shop)
    done = [Trial(**json.loads(line)) for line in notes.read_text().splitlines()] if notes.exists() else []
    verbs = make_verbs(shop, out)
    for name, n_wanted in kills.items():
        own = [trial for trial in done if trial.verb == name]
        if sum(trial.kills for trial in own) >= n_wanted:
            continue
        shutil.rmtree(out, ignore_errors=True)
        begun = time.monotonic()
        if code := run(verbs[name].first, folder / "shop.log"):
            raise SystemExit(f"{name}: ended with {code} undisturbed; see {folder / 'shop.log'}")
        length_s = time.monotonic() - begun
        wanted = outcome(out)
        while sum(trial.kills for trial in own) < n_wanted:
            number = len(own)
            trial = try_once(verbs[name], name, number, out=out, wanted=wanted, length_s=length_s)
            own.append(trial)
            done.append(trial)
            with notes.open("a") as file:
                file.write(json.dumps(asdict(trial)) + "\n")
            if trial.problem:
                say(f"{name} {number}: {trial.problem}")
                shutil.rmtree(folder / "found" / f"{name}_{number}", ignore_errors=True)
                shutil.copytree(out, folder / "found" / f"{name}_{number}")
        say(
            f"{name}: {sum(trial.kills for trial in own)} kills in {len(own)} trials, {length_s:.1f} s "
            "undisturbed"
        )
    counts = {
        name: {
            "kills": sum(trial.kills for trial in done if trial.verb == name),
            "trials": sum(trial.verb == name for trial in done),
            "wrong": sum(bool(trial.problem) for trial in done if trial.verb == name),
        }
        for name in kills
    }
    (folder / "counts.json").write_text(json.dumps(counts, indent=1) + "\n")
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", required=True, help="of each verb, such as train=100,predict=240")
    asked = parser.parse_args()
    pairs = (text.split("=") for text in asked.kills.split(","))
    print(
        json.dumps(
            campaign(asked.out, {name: int(n) for name, n in pairs}, lambda line: print(line, flush=True))
        )
    )
