"""Trained runs -> a network that comes with the package.

python tools/make_starter.py runs/fold0 runs/fold1 --name starter --card card.yaml

The card is a YAML file with the keys of `brats_seg.models.packaged.CardWords`:

data: 1,251 cases of BraTS 2021
recipe: unet2d, balanced patches, 50 epochs
scored_on: five folds, each case scored by the network that did not see its patient; convention brats2020
scores:
  - {region: whole, dice: 0.9, n: 1251, low: 0.89, high: 0.91}
not_for: care of patients
license: CC BY 4.0
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import BEST, TUNED, sha256, write_json, write_text
from brats_seg.core.settings import load_settings
from brats_seg.inference.options import read_tuning, write_tuning
from brats_seg.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from brats_seg.models.networks import make_network
from brats_seg.models.packaged import CARD, FACTS, SHELF, Card, CardWords, PackedNetwork
from brats_seg.models.restore import check_same_data
from brats_seg.models.trained import open_run

MOST_BYTES = 6_000_000
"""Of all checkpoints of a name together: more does not belong into a repository."""
_PUBLIC = re.compile(r"(BraTS|HGG?_|LGG?_|Synthetic_|BRATS_)", re.IGNORECASE)


def pack(
    runs: Sequence[Path], *, name: str, words: CardWords, tuned: Path | None = None, shelf: Path = SHELF
) -> Path:
    """Write `SHELF/NAME` with the best checkpoint of each run, in bf16, deflated and without what only
    training needs, and the card.

    Case ids that no public release names are left out. `tuned.yaml` of a single run comes along, of several
    that of the run `tuned`.

    Raises:
        UsageError: a folder that is there already, runs of other data, or weights above `MOST_BYTES`.
        InputError: no checkpoint.
    """
    folder = shelf / name
    if folder.exists():
        raise UsageError(f"{folder}: is there already; take it away or give another --name")
    paths = [run / BEST for run in runs]
    checkpoints = [load_checkpoint(path) for path in paths]
    first = checkpoints[0]
    for path, checkpoint in zip(paths, checkpoints, strict=True):
        check_same_data(checkpoint, path, modalities=first.modalities, classes=first.classes)
    folder.mkdir(parents=True)
    try:
        files = [folder / (BEST if len(runs) == 1 else f"checkpoint_{i}.pt") for i in range(len(runs))]
        for file, checkpoint in zip(files, checkpoints, strict=True):
            save_checkpoint(file, packed(checkpoint), packing="deflated")
        n_bytes = sum(file.stat().st_size for file in files)
        if n_bytes > MOST_BYTES:
            raise UsageError(
                f"{name}: {n_bytes / 1e6:.1f} MB of weights; {MOST_BYTES / 1e6:.0f} MB at most, by fewer or "
                "smaller networks"
            )
        card = Card(
            **words.model_dump(),
            name=name,
            modalities=first.modalities,
            classes=first.classes,
            spacing_mm=first.spacing_mm,
            networks=tuple(
                _facts(file, checkpoint) for file, checkpoint in zip(files, checkpoints, strict=True)
            ),
        )
        write_json(
            folder / FACTS, card.model_dump(mode="json")
        )  # makes it a packaged network, whose digest the settings name
        if tuned is None and len(runs) == 1 and (runs[0] / TUNED).is_file():
            tuned = runs[0]
        if tuned is not None:
            card = card.model_copy(update={"tuned": _pack_settings(tuned, folder)})
            write_json(folder / FACTS, card.model_dump(mode="json"))
        write_text(folder / CARD, card.text())
    except BaseException:
        shutil.rmtree(folder)
        raise
    return folder


def packed(checkpoint: Checkpoint) -> Checkpoint:
    """Without the state of training, case ids that are not public, and half of the bytes: kernels in bf16,
    the few others as they are.
    """
    halved = {_place(weight): _halved(weight) for weight in checkpoint.weights.values()}
    return replace(
        checkpoint,
        # One tensor under two names, as the blocks of a dynunet are, stays one tensor in the file.
        weights={name: halved[_place(weight)] for name, weight in checkpoint.weights.items()},
        train_cases=_public(checkpoint.train_cases),
        inner_cases=_public(checkpoint.inner_cases),
        held_out_cases=_public(checkpoint.held_out_cases),
        resume=None,
    )


def _halved(weight: Tensor) -> Tensor:
    # A copy: a view would be saved with the whole storage behind it. Biases and statistics of norms keep
    # their digits, at no cost.
    return (
        weight.to(torch.bfloat16).contiguous()
        if weight.is_floating_point() and weight.ndim > 1
        else weight.clone()
    )


def _place(weight: Tensor) -> tuple[int, torch.Size]:
    return weight.data_ptr(), weight.shape


def _public(ids: Sequence[str]) -> tuple[str, ...]:
    return tuple(case for case in ids if _PUBLIC.match(case))


def _facts(file: Path, checkpoint: Checkpoint) -> PackedNetwork:
    config = checkpoint.parsed_config()
    network = make_network(
        config.network,
        n_channels=len(checkpoint.modalities) * (2 * config.patch.slices_around + 1),
        n_classes=len(checkpoint.classes),
        n_dims=len(config.patch.size),
    )
    return PackedNetwork(
        file=file.name,
        sha256=sha256(file),
        network=config.network.name,
        n_parameters=sum(weight.numel() for weight in network.parameters()),
        epoch=checkpoint.epoch,
    )


def _pack_settings(run: Path, folder: Path) -> str:
    """Copy the settings of a run for the packed networks, and say them in words. Scores of one network are no
    scores of several: they are left out.
    """
    tuning, packed_run = read_tuning(run, checkpoint=sha256(run / BEST)), open_run(folder)
    of_others = {"score": None, "score_before": None, "gain_interval95": None, "by": "hand"}
    update = {"checkpoint": packed_run.digest, **(of_others if len(packed_run.networks) > 1 else {})}
    write_tuning(folder, tuning.model_copy(update=update))
    changed = {name: value for name, value in asdict(tuning.settings).items() if value}
    words = ", ".join(f"{name} {value:g}" for name, value in changed.items()) or "nothing is changed"
    how = "Found" if tuning.by == "search" else "Chosen by hand"
    return f"{how} on {tuning.n_cases} inner cases: {words}."


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders, averaged by `predict`"
    )
    parser.add_argument("--name", default="starter")
    parser.add_argument("--card", required=True, help="YAML file with the words of the model card")
    parser.add_argument(
        "--tuned", type=Path, metavar="RUN", help="of several runs, the one whose tuned settings travel along"
    )
    parser.add_argument("--shelf", type=Path, default=SHELF, help="where packaged networks lie")
    asked = parser.parse_args(argv)
    try:
        folder = pack(
            asked.runs,
            name=asked.name,
            words=load_settings(CardWords, Path(asked.card)),
            tuned=asked.tuned,
            shelf=asked.shelf,
        )
    except (InputError, UsageError, yaml.YAMLError) as error:
        print(f"make_starter: {error}", file=sys.stderr)
        return 1
    n_bytes = sum(file.stat().st_size for file in folder.glob("*.pt"))
    print(f"{folder}: {n_bytes / 1e6:.2f} MB of weights in {len(list(folder.glob('*.pt')))} files")
    return 0


if __name__ == "__main__":
    sys.exit(main())
