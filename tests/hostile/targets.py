"""Every kind of file that is read: a sound one, how it is spoiled, how it is read, and what another reader
says of it.
"""

import gzip
import io
import json
import pickle
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutants
import nibabel
import numpy as np
import SimpleITK
import torch
from PIL import Image

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import build_bank
from brats_seg.bank.listing import read_folds, read_listing
from brats_seg.bank.mapped import map_array
from brats_seg.bank.records import read_entry
from brats_seg.classification.cifar import read_binary_batch, read_python_batch
from brats_seg.classification.folder import read_image
from brats_seg.classification.idx import read_idx
from brats_seg.classification.images import load_images
from brats_seg.core.config import Config, load_config
from brats_seg.core.files import sha256
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Network
from brats_seg.core.settings import dump_config
from brats_seg.evaluation.run_rows import COLUMNS, read_finished
from brats_seg.inference import options as tunings
from brats_seg.inference import outputs
from brats_seg.models.checkpoint import Checkpoint, library_versions, load_checkpoint, save_checkpoint
from brats_seg.models.networks import make_network
from brats_seg.models.restore import restore_network
from brats_seg.phantoms.cohort import write_cohort
from brats_seg.reporting.history import _rows
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import read_header, read_volume, write_volume
from brats_seg.studies.store import check_identity, read_rows
from brats_seg.studies.strategies import load_experiment

RAMP = np.arange(3 * 4 * 5, dtype=np.int16).reshape(3, 4, 5)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        path: of the file in a folder that is ready to be read; its sound content lies there.
        mutate: spoils the content.
        read: reads it, as a verb would.
        compare: whether what was read is right, where another reader takes the file or it can be told
            otherwise; None where it cannot.
    """

    path: Path
    mutate: mutants.Mutate
    read: Callable[[], Any]
    compare: Callable[[Any], bool] | None = None


def make_targets(root: Path) -> dict[str, Target]:
    """Every kind by its name, in folders of its own under `root`."""
    return {
        **_scans(root),
        **_bank_files(root),
        **_settings(root),
        **_images(root),
        **_tables(root),
        "checkpoint": _checkpoint(root),
    }


def _scans(root: Path) -> dict[str, Target]:
    targets = {}
    header = mutants.first_bytes(352)
    for name, suffix, mutate in (
        ("nifti", ".nii", header),
        ("nifti packed", ".nii.gz", mutants.packed(header)),
        ("metaimage", ".mha", mutants.text),
        ("metaimage packed", ".mha", mutants.packed_after(b"ElementDataFile = LOCAL\n", mutants.text)),
    ):
        path = _folder(root, name) / f"x{suffix}"
        write_volume(
            path, RAMP, make_geometry(RAMP.shape, spacing_mm=(1, 2, 3), orientation="RAS"), dtype="int16"
        )
        if name == "metaimage":
            SimpleITK.WriteImage(SimpleITK.ReadImage(path), path, useCompression=False)
        targets[name] = Target(
            path,
            mutate,
            lambda path=path: _read_scan(path),
            _like_nibabel(path) if "nii" in suffix else _like_itk(path),
        )
    return targets


def _read_scan(path: Path) -> tuple[np.ndarray, Any]:
    read_header(path)
    return read_volume(path)


def _like_nibabel(path: Path) -> Callable[[Any], bool]:
    def compare(found: Any) -> bool:
        array, geometry = found
        try:
            with np.errstate(all="ignore"):
                image = nibabel.load(path)
                if image.dataobj.offset < image.header.single_vox_offset:
                    return True  # the voxels begin behind the header, whatever it says
                theirs, affine = np.asarray(image.dataobj, np.float64), image.affine
        except Exception:  # it refuses the file
            return True
        native = np.squeeze(
            theirs.reshape(theirs.shape + (1,) * (3 - theirs.ndim)), axis=tuple(range(3, theirs.ndim))
        )
        turned = nibabel.orientations.apply_orientation(native, _turn(geometry.axis_codes)).transpose(2, 1, 0)
        same = np.allclose(turned, array, rtol=1e-3, equal_nan=True) if turned.shape == array.shape else False
        return bool(same and np.allclose(affine, geometry.affine, rtol=1e-3, atol=1e-3))

    return compare


def _like_itk(path: Path) -> Callable[[Any], bool]:
    def compare(found: Any) -> bool:
        array, geometry = found
        try:
            image = SimpleITK.ReadImage(path)
        except RuntimeError:
            return True
        head = path.read_bytes()
        if b"CompressedData = True" in head and b"CompressedDataSize" not in head:
            return True  # ITK says "Uncompress failed" and gives unset memory
        theirs = SimpleITK.GetArrayFromImage(image).transpose(2, 1, 0)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
        affine[:3, 3] = image.GetOrigin()
        turned = nibabel.orientations.apply_orientation(theirs, _turn(geometry.axis_codes)).transpose(2, 1, 0)
        return bool(
            np.array_equal(turned, array)
            and np.allclose(geometry.affine, np.diag([-1, -1, 1, 1]) @ affine, rtol=1e-6)
        )

    return compare


def _turn(codes: Any) -> np.ndarray:
    ornt = nibabel.orientations
    return ornt.ornt_transform(ornt.axcodes2ornt(codes), ornt.axcodes2ornt(("L", "P", "S")))


def _bank_files(root: Path) -> dict[str, Target]:
    scans = _folder(root, "cohort")
    write_cohort(scans, n_cases=2, layout="brats2023", size=48, seed=0)
    built = _folder(root, "built")
    build_bank(scans, built)
    case_id = PatchBank(built, patch_size=(8, 8)).cases[0].id

    def bank(name: str) -> Path:
        folder = _folder(root, name)
        shutil.copytree(built, folder, dirs_exist_ok=True)
        return folder

    def opened(folder: Path) -> Any:
        found = PatchBank(folder, patch_size=(8, 8))
        return found.folds

    entry = bank("case.json") / "cases" / case_id / "case.json"
    listed = bank("bank.json")
    sound = read_entry(entry)
    array = bank("npy") / "cases" / case_id / "label.npy"
    values = np.load(array)
    folds = bank("folds.json")

    def read_changed_folds() -> Any:
        """As if the list had their checksum."""
        return read_folds(
            folds, read_listing(folds).model_copy(update={"folds": sha256(folds / "folds.json")})
        )

    return {
        "bank.json": Target(listed / "bank.json", mutants.text, lambda: opened(listed)),
        "folds.json": Target(folds / "folds.json", mutants.text, read_changed_folds),
        "case.json": Target(
            entry, mutants.text, lambda: read_entry(entry), lambda found: _same_entry(found, sound)
        ),
        "npy": Target(
            array,
            mutants.first_bytes(128, step=1),
            lambda: map_array(array),
            lambda found: found.size <= values.size + 128,
        ),
        "dataset.json": _dataset(root),
        "rows.jsonl": _grid(root),
    }


def _same_entry(found: Any, sound: Any) -> bool:
    """A changed file says the same as before, or has lost its checksum."""
    return found.checksum is None or found == sound


def _dataset(root: Path) -> Target:
    folder = _folder(root, "dataset.json")
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir()
        (folder / part / "BRATS_001.nii.gz").touch()
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    tree = {"modality": {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}, "labels": labels}
    (folder / "dataset.json").write_text(json.dumps(tree, indent=1))
    return Target(
        folder / "dataset.json",
        mutants.text,
        lambda: [str(problem) for problem in find_cases(folder).problems],
    )


def _grid(root: Path) -> Target:
    folder = _folder(root, "rows.jsonl")
    (folder / "grid.json").write_text(json.dumps({"study": "a"}))
    rows = [{"key": f"cell{i}", "digest": f"{i:064x}", "rows": [{"n": i, "dice": 0.5}]} for i in range(3)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def read() -> Any:
        check_identity(folder, {"study": "a"})
        return read_rows(folder)

    return Target(folder / "rows.jsonl", mutants.text, read)


def _settings(root: Path) -> dict[str, Target]:
    config = _folder(root, "config.yaml") / "config.yaml"
    config.write_text(dump_config(Config()))
    study = _folder(root, "experiment.yaml") / "experiment.yaml"
    shutil.copy(Path(__file__).parents[2] / "configs" / "experiments" / "sampling_quick.yaml", study)
    tuned = _folder(root, "tuned.yaml")
    found = tunings.Tuning(
        correct_priors=0.3,
        min_component_mm3=50,
        min_enhancing_mm3=20,
        epoch=7,
        checkpoint="ab",
        n_cases=4,
        score=0.8,
        score_before=0.7,
    )
    tunings.write_tuning(tuned, found)
    return {
        "config.yaml": Target(config, mutants.text, lambda: dump_config(load_config(config))),
        "experiment.yaml": Target(study, mutants.text, lambda: load_experiment(study)),
        "tuned.yaml": Target(
            tuned / "tuned.yaml", mutants.text, lambda: tunings.read_tuning(tuned, checkpoint="ab")
        ),
    }


def _images(root: Path) -> dict[str, Target]:
    dice = np.random.default_rng(0)
    idx = _folder(root, "idx") / "images"
    idx.write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, *range(24)]))
    idx_packed = _folder(root, "idx packed") / "images.gz"
    idx_packed.write_bytes(gzip.compress(idx.read_bytes()))
    pixels = dice.integers(0, 256, (2, 3072), np.uint8)
    cifar = _folder(root, "cifar") / "data_batch_1.bin"
    cifar.write_bytes(np.concatenate([np.array([[3], [7]], np.uint8), pixels], axis=1).tobytes())
    batch = _folder(root, "cifar python") / "data_batch_1"
    batch.write_bytes(pickle.dumps({b"data": pixels, b"labels": [3, 7]}, protocol=2))
    npz = _folder(root, "npz") / "a.npz"
    images = dice.integers(0, 256, (8, 4, 4), np.uint8)
    np.savez(npz, images=images, labels=np.arange(8) % 2, class_names=np.array(["no", "yes"]))
    targets = {
        "idx": Target(idx, mutants.first_bytes(16, step=1), lambda: read_idx(idx, n_axes=3)),
        "idx packed": Target(
            idx_packed,
            mutants.packed(mutants.first_bytes(16, step=1)),
            lambda: read_idx(idx_packed, n_axes=3),
        ),
        "cifar": Target(cifar, mutants.any_bytes, lambda: read_binary_batch(cifar)),
        "cifar python": Target(batch, _pickle_mutant, lambda: read_python_batch(batch)),
        "npz": Target(
            npz, mutants.archived(".npy", mutants.first_bytes(128, step=1)), lambda: load_images("npz", npz)
        ),
    }
    for kind, options in (("png", {}), ("jpeg", {"quality": 90})):
        path = _folder(root, kind) / f"x.{kind}"
        content = io.BytesIO()
        Image.fromarray(dice.integers(0, 256, (20, 30, 3), np.uint8)).save(content, kind, **options)
        path.write_bytes(content.getvalue())
        mutate = mutants.chunked if kind == "png" else mutants.any_bytes
        targets[kind] = Target(path, mutate, lambda path=path: read_image(path))
    return targets


def _pickle_mutant(content: bytes, dice: random.Random) -> bytes:
    """Its instructions changed, which are the first and the last bytes."""
    n_last = 60
    if dice.random() < 0.5:
        return mutants.first_bytes(160, step=1)(content, dice)
    return content[:-n_last] + mutants.any_bytes(content[-n_last:], dice)


def _tables(root: Path) -> dict[str, Target]:
    out = _folder(root, "predictions.csv")
    for case in ("A", "B"):
        (out / f"{case}.nii.gz").touch()
        outputs.add_row(
            out,
            {
                "case": case,
                "file": f"{case}.nii.gz",
                "schema": "brats2023",
                "seconds": 1.5,
                "edema_ml": 3.25,
                "warnings": "",
            },
        )
    runs = _folder(root, "runs.csv") / "runs.csv"
    row = {name: {str: "a", int: "1", float: "0.5"}[kind] for name, kind in COLUMNS.items()}
    runs.write_text(",".join(row) + "\n" + (",".join(row.values()) + "\n") * 3)
    scans = _folder(root, "manifest.csv")
    (scans / "x.nii.gz").touch()
    manifest = "case,patient,t1n,t1c,t2w,t2f,label,schema\n" + "".join(
        f"C{i},P{i}" + ",x.nii.gz" * 5 + ",brats2023\n" for i in range(3)
    )
    (scans / "manifest.csv").write_text(manifest)
    run = _folder(root, "epochs.csv")
    (run / "epochs.csv").write_text(
        "epoch,loss,dice_whole,dice_core,dice_active\n1,0.5,0.5,0.4,0.3\n2,0.4,0.6,0.5,0.4\n"
    )
    return {
        "predictions.csv": Target(out / "predictions.csv", mutants.text, lambda: outputs.read_rows(out)),
        "runs.csv": Target(runs, mutants.text, lambda: read_finished(runs)),
        "manifest.csv": Target(
            scans / "manifest.csv",
            mutants.text,
            lambda: [str(problem) for problem in find_cases(scans / "manifest.csv").problems],
        ),
        "epochs.csv": Target(
            run / "epochs.csv",
            mutants.text,
            lambda: _rows(run / "epochs.csv", numbers=("epoch",), or_empty=("loss", "dice_whole")),
        ),
    }


def _checkpoint(root: Path) -> Target:
    path = _folder(root, "checkpoint") / "checkpoint_best.pt"
    network = Network(name="unet2d", channels=(4, 8), num_res_units=0)
    saved = Checkpoint(
        weights=make_network(network, n_channels=4, n_classes=5, n_dims=2).state_dict(),
        config=dump_config(Config(network=network)),
        modalities=("t1n", "t1c", "t2w", "t2f"),
        classes=("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core"),
        spacing_mm=(1.0, 1.0, 1.0),
        normalization={"percentiles": [0.5, 99.5], "n4": False},
        bank="abc",
        fold=2,
        train_cases=("A", "B"),
        inner_cases=("C",),
        held_out_cases=("D",),
        effective_prior=(0.2,) * 5,
        natural_prior=(0.2,) * 5,
        epoch=3,
        step=7,
        score=0.5,
        n_threads=1,
        precision="float32",
        versions=library_versions(),
    )
    save_checkpoint(path, saved)
    inner = mutants.archived("data.pkl", mutants.any_bytes)

    def mutate(content: bytes, dice: random.Random) -> bytes:
        """The pickle, or a word of the config in it, whose length is written before it."""
        if dice.random() < 0.6:
            return inner(content, dice)
        tree = torch.load(io.BytesIO(content), weights_only=True)
        tree["config"] = mutants.text(tree["config"].encode(), dice).decode(errors="replace")
        changed = io.BytesIO()
        torch.save(tree, changed)
        return changed.getvalue()

    return Target(
        path,
        mutate,
        lambda: restore_network(load_checkpoint(path), path, runtime=Runtime(torch.device("cpu"))),
    )


def _folder(root: Path, name: str) -> Path:
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    return path
