"""Show that a change of the code changed no number.

    python tools/same_numbers.py write before.json                     # on the commit before the change
    python tools/same_numbers.py write after.json                      # on the commit after the change
    python tools/same_numbers.py compare before.json after.json        # names each number that differs

`write` runs the command line on tiny phantoms and on some MNIST digits, with one thread, in about two
minutes of one core. It writes the losses of each epoch, digests of the trained weights and of the label maps,
and every number of the tables. The digits lie in the folder `mnist` under BRATS_SEG_DATA. Without them
`write` ends with a line that says so.

`write` uses the verbs of the command line and the files that they write, and no function of the package. So
one copy of this script can write the numbers of any commit:

    PYTHONPATH=OTHER_CHECKOUT python tools/same_numbers.py write other.json

`compare` compares by name. Numbers are equal where every bit is equal. `--except PREFIX` leaves out the
numbers whose name begins with PREFIX: those that a change is meant to change. A number that only the second
file has is counted as new, and is no difference. Compare files of one machine: another processor, or another
version of torch, rounds in another way.
"""

import argparse
import csv
import gzip
import hashlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

CLOCKS = ("second", "minute", "digest", "version", "config", "bank", "cell", "checkpoint")
"""A column with one of these words in its name holds a clock time, or a name, or a digest of names."""
LONGEST = 40
"""A list of more numbers than this, such as a ROC curve, is written as one digest."""
WORDS = ("strategy", "method", "decision", "epoch", "case", "region", "class")
"""Columns that say what a row is of."""
TINY = ["training.threads=1", "training.precision=float32", "training.steps=6", "training.batch_size=16"]
SMALL_2D = [*TINY, "network.channels=[4,4,8,8,8,4]", "patch.size=[32,32]"]
N_TRAIN, N_TEST = 4000, 600
"""Digits that are trained from and tested on."""

EXPERIMENT = """
like: sampling_quick
every:
  network.channels: [4, 4, 8, 8, 8, 4]
  patch.size: [32, 32]
  training.epochs: 2
  training.steps: 4
  training.batch_size: 16
  validation.every: 1
predict: {correct_priors: [0, 0.5]}
"""
STUDY = """
images: {name: mnist}
base: 60
distributions:
  - {kind: step, rho: [6], mu: [0.5], minority: random}
network: {name: lenet5}
training: {iterations: 12, batch_size: 16, seed: 0}
"""
METHODS = f"""{STUDY}
methods:
  baseline: {{}}
  oversample: {{two_phase: true, imbalance_ratio: [1, 2]}}
  undersample: {{two_phase: true}}
  undersample_redrawn: {{kind: undersample, redraw: epoch}}
  class_weights: {{}}
  focal: {{}}
  logit_adjusted: {{}}
  deferred_weights: {{weights_from: 0.5}}
  class_aware: {{}}
  perturbed_copies: {{}}
  hard_replay: {{}}
  easy_ensemble: {{networks: 2}}
  balance_cascade: {{networks: 2}}
  smote: {{neighbors: 3}}
  borderline_smote: {{neighbors: 3}}
  kmeans_smote: {{neighbors: 3}}
  one_sided_selection: {{}}
  edited_nearest_neighbours: {{neighbors: 3}}
validation: {{held_out: 20, images: held_out, score: auc, every: 6}}
decisions: {{priors: [set, ledger], tuned: [balanced_accuracy]}}
"""
CHOSEN = f"""{STUDY}
methods:
  baseline: {{}}
  hard_replay: {{two_phase: true, hard: {{subset: 40, recycle: false, max_age: 2}}}}
search: {{rates: [0.01, 0.1], runs: 2}}
validation: {{images: half, score: sensitivity_and_f_score, of: "3", every: 3, checkpoint: best, patience: 9}}
record: {{curve_every: 4, roc: true, train: true}}
"""

Numbers = dict[str, float | str]
"""A number by its name; a digest is a string."""


def write_numbers(folder: Path, digits: Path) -> Numbers:
    """Run everything in a folder and give the numbers.

    Args:
        folder: an empty folder to work in.
        digits: the folder of MNIST.

    Raises:
        RuntimeError: a verb that ended with another code than 0.
    """
    scans, bank = folder / "scans", folder / "bank"
    run_verb("phantom", scans, "--cases", 6, "--size", 64, "--seed", 1)
    run_verb("preprocess", scans, bank, "--folds", 3, "--workers", 1)
    numbers: Numbers = {}

    def train(name: str, config: str, *knobs: str) -> Path:
        run_verb("train", bank, folder / name, "--config", config, *set_options(knobs))
        numbers.update(numbers_of_run(folder / name, name))
        return folder / name

    def predict(run: Path, *options: str) -> None:
        name = f"{run.name} {' '.join(options)}".strip()
        out = folder / f"predicted {name}"
        run_verb("predict", run, scans, out, "--held-out", *options)
        run_verb("evaluate", out, scans, "--held-out", run)
        numbers.update(numbers_of_predictions(out, f"{name}/predictions"))

    demo = train("demo", "demo", *SMALL_2D, "training.epochs=3")
    predict(demo)
    run_verb("tune", demo, bank)
    predict(demo, "--tuned", "--tta")
    predict(demo, "--correct-priors", "0.5", "--inference", "windowed")
    in_3d = train("in_3d", "unet3d", *TINY, "network.channels=[4,8,8]", "patch.size=[16,32,32]",
                  "training.batch_size=2", "training.epochs=2", "optimizer.warmup_steps=3",
                  "validation.every=1")  # fmt: skip
    predict(in_3d)
    train("two_phase", "demo", *SMALL_2D, "training.epochs=2", "phases.two_phase=true", "phases.epochs=2",
          "network.dropout=0.3", "loss.class_weights=balanced", "loss.weights_from=0.5")  # fmt: skip
    hard = (*SMALL_2D, "sampler.kind=hard", "hard.subset=500", "training.ema=0.9", "training.epochs=5")
    kill_training(bank, folder / "hard", "--config", "demo", *set_options(hard))
    run_verb("train", bank, folder / "hard", "--config", "demo", *set_options(hard), "--resume")
    numbers |= numbers_of_run(folder / "hard", "hard")
    train("aimed", "demo", *SMALL_2D, "training.epochs=2", "sampler.kind=ratio", "sampler.healthy_share=0.4",
          "sampler.drift=to_natural", "sampler.first=lesion", "sampler.jitter=0.5", "augment=strong",
          "augment.modality_dropout=0.2", "loss.kind=dice_cross_entropy",
          "training.accumulate=2")  # fmt: skip
    detector = train("detector", "demo", *SMALL_2D, "training.epochs=2", "task.classes=healthy_or_tumor")
    classifier = train("classifier", "demo", *SMALL_2D, "training.epochs=2", "task.classes=tumor")
    run_verb("cascade", detector, classifier, folder / "cascade")
    numbers |= {"cascade/weights": digest_of_weights(folder / "cascade" / "checkpoint_best.pt")}
    predict(folder / "cascade")
    numbers |= numbers_of_experiment(folder / "experiment", bank)
    few = take_digits(digits, folder / "digits")
    numbers |= numbers_of_study(folder / "methods", METHODS, images=few)
    numbers |= numbers_of_study(folder / "chosen", CHOSEN, images=few)
    return numbers


def numbers_of_run(run: Path, name: str) -> Numbers:
    """Losses, draws and weights of a training."""
    numbers = {
        f"{name}/{kind}/weights": digest_of_weights(run / f"checkpoint_{kind}.pt")
        for kind in ("best", "last")
    }
    for table in ("epochs", "ledger", "ledger_cases", "ledger_lesions"):
        if (run / f"{table}.csv").is_file():
            numbers |= numbers_of_table(run / f"{table}.csv", f"{name}/{table}")
    return numbers


def numbers_of_predictions(folder: Path, name: str) -> Numbers:
    """Digests of label maps, volumes and scores."""
    import nibabel  # here: torch and NumPy are not to be loaded before the threads are counted
    import numpy as np

    numbers: Numbers = {}
    for file in sorted(folder.glob("*.nii.gz")):
        labels = np.asarray(nibabel.load(file).dataobj)
        numbers[f"{name}/{file.name}"] = digest_of(
            str(labels.shape).encode(), labels.astype(np.int64).tobytes()
        )
    for table in ("predictions", "scores"):
        numbers |= numbers_of_table(folder / f"{table}.csv", f"{name}/{table}")
    return numbers


def numbers_of_experiment(out: Path, bank: Path) -> Numbers:
    """Rows and summary of an experiment."""
    config = out.with_suffix(".yaml")
    config.write_text(EXPERIMENT)
    run_verb("experiment", bank, out, "--config", config, "--workers", 1)
    summary = json.loads((out / "summary.json").read_text())
    return numbers_of_table(out / "runs.csv", "experiment/runs") | dict(
        flatten(summary, "experiment/summary")
    )


def numbers_of_study(out: Path, settings: str, *, images: Path) -> Numbers:
    """Rows and tables of a study of images."""
    config = out.with_suffix(".yaml")
    config.write_text(settings)
    run_verb("study", "run", config, out, "--images", images, "--workers", 1)
    run_verb("study", "table", out)
    rows = [row for line in (out / "rows.jsonl").read_text().splitlines() for row in json.loads(line)["rows"]]
    numbers = dict(flatten(rows, f"{out.name}/rows"))
    for table in ("table", "pairs"):
        if (out / f"{table}.csv").is_file():
            numbers |= numbers_of_table(out / f"{table}.csv", f"{out.name}/{table}")
    return numbers


def numbers_of_table(path: Path, name: str) -> Numbers:
    """Every number of a CSV file."""
    with path.open(newline="") as file:
        return dict(flatten(list(csv.DictReader(file)), name))


def flatten(value: Any, name: str) -> Iterator[tuple[str, float | str]]:
    """Numbers of a nested value by their path; a row of a table has its place and its words in its name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not any(word in str(key) for word in CLOCKS):
                yield from flatten(item, f"{name}/{key}")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if len(value) > LONGEST and all(isinstance(item, int | float) for item in value):
            yield name, digest_of(json.dumps(value).encode())
            return
        for number, item in enumerate(value):
            said = [str(item[key]) for key in WORDS if item.get(key)] if isinstance(item, Mapping) else []
            yield from flatten(item, f"{name}/{' '.join([str(number), *said])}")
    elif value is not None:
        try:
            yield name, repr(float(value))
        except ValueError:
            return  # words


def digest_of_weights(checkpoint: Path) -> str:
    """Of the values of a checkpoint's weights, whatever their names are."""
    import torch

    weights = torch.load(checkpoint, map_location="cpu", weights_only=True)["weights"]
    return digest_of(*(tensor.contiguous().numpy().tobytes() for tensor in weights.values()))


def digest_of(*parts: bytes) -> str:
    """SHA-256 of some bytes, in few characters."""
    return hashlib.sha256(b"".join(parts)).hexdigest()[:16]


def set_options(knobs: Sequence[str]) -> list[str]:
    """`--set` before each knob."""
    return [part for knob in knobs for part in ("--set", knob)]


def run_verb(*argv: object) -> None:
    """Run `python -m brats_seg ARGV` in this process. Raises `RuntimeError` where the exit code is not 0."""
    words = [str(word) for word in argv]
    print("brats-seg", *words, file=sys.stderr)
    before, sys.argv = sys.argv, ["brats-seg", *words]
    try:
        runpy.run_module("brats_seg", run_name="__main__", alter_sys=False)
    except SystemExit as ended:
        if ended.code:
            raise RuntimeError(f"brats-seg {' '.join(words)} ended with {ended.code}") from None
    finally:
        sys.argv = before


def kill_training(bank: Path, run: Path, *options: str) -> None:
    """Start a training in a process of its own and kill the process after two epochs.

    Raises:
        RuntimeError: the training ended before it was killed.
    """
    epochs = run / "epochs.csv"
    training = subprocess.Popen([sys.executable, "-m", "brats_seg", "train", str(bank), str(run), *options])
    while training.poll() is None and not (epochs.is_file() and epochs.read_text().count("\n") >= 3):
        time.sleep(0.01)
    training.kill()
    if training.wait() != -signal.SIGKILL:
        raise RuntimeError(f"{run}: the training ended before it was killed; give it more epochs")


def take_digits(digits: Path, out: Path) -> Path:
    """The first digits of MNIST as files of their own."""
    out.mkdir()
    for part, n in (("train", N_TRAIN), ("t10k", N_TEST)):
        for kind, n_head, n_bytes in (("images-idx3", 16, 28 * 28), ("labels-idx1", 8, 1)):
            with gzip.open(digits / f"{part}-{kind}-ubyte.gz") as file:
                head, values = file.read(n_head), file.read(n * n_bytes)
            (out / f"{part}-{kind}-ubyte").write_bytes(head[:4] + n.to_bytes(4) + head[8:] + values)
    return out


def differences(before: Numbers, after: Numbers, *, without: Sequence[str] = ()) -> list[str]:
    """A line for each number of the first set that the second has not, or has as another number.

    Args:
        before, after: numbers by name.
        without: beginnings of the names that are left out.
    """
    names = [name for name in before if not name.startswith(tuple(without))]
    return [f"{name}: {before[name]} -> {after.get(name, 'missing')}"
            for name in names if before[name] != after.get(name)]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run `write` or `compare`; gives the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    writer = verbs.add_parser("write", help="run everything and write the numbers")
    writer.add_argument("out", type=Path)
    comparer = verbs.add_parser("compare", help="exit 1 where a number differs")
    comparer.add_argument("before", type=Path)
    comparer.add_argument("after", type=Path)
    comparer.add_argument("--except", dest="without", metavar="PREFIX", action="append", default=[])
    given = parser.parse_args(argv)
    if given.verb == "compare":
        before, after = (json.loads(path.read_text()) for path in (given.before, given.after))
        lines = differences(before, after, without=given.without)
        new = sum(name not in before for name in after)
        print(*lines, f"{len(lines)} of {len(before)} numbers differ; {new} are new", sep="\n")
        return int(bool(lines))
    digits = Path(os.environ.get("BRATS_SEG_DATA", "")) / "mnist"
    if not digits.is_dir():
        print(f"{digits}: no such folder; BRATS_SEG_DATA names the folder that holds mnist/", file=sys.stderr)
        return 1
    use_one_thread()
    with tempfile.TemporaryDirectory() as folder:
        numbers = write_numbers(Path(folder), digits)
    given.out.write_text(json.dumps(numbers, indent=0) + "\n")
    print(f"{len(numbers)} numbers in {given.out}")
    return 0


def use_one_thread() -> None:
    """One core and one thread for this process and those that it starts: sums are then added in one order."""
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = "1"
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})


if __name__ == "__main__":
    sys.exit(main())
