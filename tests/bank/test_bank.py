"""Opening a bank, its batches and its volumes."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from brats_seg.bank.bank import PatchBank
from brats_seg.bank.gather import PatchMaps
from brats_seg.bank.listing import verify_bank
from brats_seg.bank.records import FILES
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import sha256


@pytest.fixture
def copied(small_bank: Path, tmp_path: Path) -> Path:
    shutil.copytree(small_bank, tmp_path / "bank")
    return tmp_path / "bank"


def change(bank: Path, **values: object) -> None:
    tree = json.loads((bank / "bank.json").read_text())
    (bank / "bank.json").write_text(json.dumps(tree | values))


def some_ids(bank: PatchBank, n: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    classes = np.arange(n) % len(bank.classes)
    return bank.index.pick(classes, rng.integers(0, bank.index.counts[classes]))


def test_what_a_bank_says_of_itself(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    assert bank.classes == ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
    assert bank.modalities == ("t1n", "t1c", "t2w", "t2f")
    assert bank.spacing_mm == (1.0, 1.0, 1.0)
    assert bank.normalization == {"percentiles": [0.5, 99.5], "n4": False}
    assert [case.id for case in bank.cases] == [f"BraTS2021_{i:05}" for i in range(4)]
    assert bank.cases[0].n_voxels == (1752, 8, 36, 4)
    assert bank.cases[0].shape == (10, 12, 15)
    assert bank.cases[0].grid_shape == (12, 16, 20)
    assert bank.index.counts.tolist() == [
        1752 * 4,
        8 * 4,
        36 * 3 + 40,
        4 * 3,
    ]  # the last has edema where the others enhance
    assert sorted(case for fold in bank.folds for case in fold) == [case.id for case in bank.cases]


@pytest.mark.parametrize("size", [(8, 8), (16, 20), (5, 8, 7)])
def test_the_center_of_a_patch_has_the_class_of_its_draw(small_bank: Path, size: tuple[int, ...]) -> None:
    bank = PatchBank(small_bank, patch_size=size)
    batch = bank.batch(some_ids(bank))
    center = (slice(None), *(n // 2 for n in size))
    assert batch.targets[center].tolist() == [0, 1, 2, 3] * 3
    assert batch.inputs.shape == (12, 4, *size)
    assert batch.inputs.movedim(1, -1).is_contiguous()
    assert batch.counts.sum() == batch.targets.numel()
    assert (
        batch.counts[:4].tolist() == torch.bincount(batch.targets[batch.targets != 255], minlength=4).tolist()
    )


def test_every_voxel_of_the_brain_can_be_a_center(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8), cases=["BraTS2021_00002"])
    seen = np.concatenate(
        [bank.index.pick(np.full(n, k), np.arange(n)) for k, n in enumerate(bank.index.counts)]
    )
    _, label = bank.volume(2)
    assert np.array_equal(np.sort(seen), (2 << 32) + np.flatnonzero(label.reshape(-1) != 255))
    batch = bank.batch(seen)
    places = bank.locate(seen)
    assert np.array_equal(batch.targets[:, 4, 4].numpy(), label[tuple(places[:, 1:].T)])
    image, _ = bank.volume(2)
    assert np.array_equal(batch.inputs[:, :, 4, 4].numpy(), image[tuple(places[:, 1:].T)].astype(np.float32))


def test_a_batch_goes_into_buffers_of_the_caller(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    ids = some_ids(bank)
    first = bank.batch(ids)
    kept = first.inputs.clone()
    again = bank.batch(ids[::-1].copy(), out=first)
    assert again.inputs.data_ptr() == first.inputs.data_ptr()
    assert torch.equal(again.inputs, kept.flip(0))
    with pytest.raises(UsageError, match=r"\(3, 8, 8\)"):
        bank.batch(ids[:3], out=first)


def test_an_id_means_the_same_voxel_whatever_is_selected(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    two = bank.select(["BraTS2021_00003", "BraTS2021_00001"])
    assert two.selected == (3, 1)
    assert bank.selected == (0, 1, 2, 3)
    assert two.index.counts[3] == 4
    ids = some_ids(two)
    assert set((ids >> 32).tolist()) <= {1, 3}
    assert torch.equal(two.batch(ids).inputs, bank.batch(ids).inputs)
    assert two.digest == bank.digest


def test_healthy_or_tumor_counts_and_targets_follow(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    two = bank.regroup("healthy_or_tumor")
    assert (two.kind, two.classes, two.digest) == ("healthy_or_tumor", ("healthy", "tumor"), bank.digest)
    assert two.index.counts.tolist() == [1752 * 4, 48 * 4]
    ids = some_ids(two)
    ours, plain = two.batch(ids), bank.batch(ids)
    assert ours.targets[:, 4, 4].tolist() == [0, 1] * 6
    assert torch.equal(ours.targets == 1, (plain.targets > 0) & (plain.targets < 255))
    assert torch.equal(ours.inputs, plain.inputs)
    assert ours.counts.tolist() == [plain.counts[0], plain.counts[1:4].sum(), plain.counts[4]]


def test_tumor_alone_never_draws_a_healthy_center_and_shows_healthy_as_outside(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    tumor = bank.regroup("tumor")
    assert tumor.classes == ("necrotic_or_non_enhancing", "edema", "enhancing_core")
    assert tumor.index.counts.tolist() == bank.index.counts[1:].tolist()
    every = np.concatenate(
        [tumor.index.pick(np.full(n, k), np.arange(n)) for k, n in enumerate(tumor.index.counts)]
    )
    centers = bank.batch(every).targets[:, 4, 4]
    assert torch.equal(tumor.batch(every).targets[:, 4, 4], centers - 1)
    assert sorted(set(centers.tolist())) == [1, 2, 3]
    batch = tumor.batch(every[:5])
    assert batch.counts.sum() == 5 * 64
    assert set(batch.targets.unique().tolist()) <= {0, 1, 2, 255}


def test_a_grouped_bank_goes_through_select_pickle_and_back(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    tumor = bank.regroup("tumor").select(["BraTS2021_00001"])
    assert tumor.index.counts.tolist() == [8, 36, 4]
    again = pickle.loads(pickle.dumps(tumor))
    assert (again.kind, again.classes, again.selected) == (tumor.kind, tumor.classes, (1,))
    assert again.index.counts.tolist() == [8, 36, 4]
    back = tumor.regroup("all")
    assert (back.classes, back.selected) == (bank.classes, (1,))
    assert back.regroup("healthy_or_tumor").index.counts.tolist() == [1752, 48]
    assert tumor.classes[0] == "necrotic_or_non_enhancing"


def test_volumes_of_a_grouped_bank_hold_its_classes(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    image, tissue = bank.volume(0)
    same, two = bank.regroup("healthy_or_tumor").volume(0)
    _, tumor = bank.regroup("tumor").volume(0)
    assert same is image
    assert np.array_equal(two, np.where(tissue == 255, 255, tissue != 0))
    assert np.array_equal(
        tumor, np.where(tissue == 0, 255, np.where(tissue == 255, 255, tissue.astype(int) - 1))
    )
    with pytest.raises(ValueError, match="read-only"):
        two[0] = 0


def test_what_is_mapped_serves_every_grouping(small_bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8))
    bank.batch(some_ids(bank, 400))
    monkeypatch.setattr("brats_seg.bank.bank.map_array", None)
    for kind in ("healthy_or_tumor", "tumor"):
        grouped = bank.regroup(kind)
        grouped.batch(some_ids(grouped, 400))


def test_a_pickled_bank_is_opened_anew(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8), cases=["BraTS2021_00001"])
    ids = some_ids(bank)
    bank.batch(ids)
    packed = pickle.dumps(bank)
    assert len(packed) < 1000
    other = pickle.loads(packed)
    assert other.selected == (1,)
    assert torch.equal(other.batch(ids).inputs, bank.batch(ids).inputs)


def test_a_bank_that_does_not_fit_the_device_is_asked_once_and_copies_each_batch(
    small_bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device `meta` stands for one without memory: what is copied there has a shape and no numbers."""
    asked = []
    monkeypatch.setattr(PatchBank, "_fits", lambda bank: bool(asked.append(bank)))
    bank = PatchBank(small_bank, patch_size=(8, 8)).to("meta")
    ids, batch = some_ids(bank), None
    for _ in range(3):
        batch = bank.batch(ids, out=batch)
        assert batch.inputs.device.type == batch.targets.device.type == "meta"
        assert batch.inputs.shape == (12, 4, 8, 8)
        assert batch.inputs.movedim(1, -1).is_contiguous()
        assert isinstance(batch.counts, torch.Tensor)
    assert len(asked) == 1
    bank.select(["BraTS2021_00001"]).batch(ids)
    assert len(asked) == 2


def test_a_batch_with_maps_and_slices_around(small_bank: Path) -> None:
    bank = PatchBank(small_bank, patch_size=(8, 8), slices_around=1)
    assert (bank.slices_around, bank.n_channels) == (1, 12)
    ids, still = some_ids(bank), PatchBank(small_bank, patch_size=(8, 8))
    flips = PatchMaps(
        np.zeros((12, 3), np.int64), np.tile(np.diag([1, -1, 1]).astype(np.float32), (12, 1, 1))
    )
    batch, plain = bank.batch(ids, maps=flips), still.batch(ids)
    assert batch.inputs.shape == (12, 12, 8, 8)
    assert torch.equal(batch.inputs[:, 4:8], plain.inputs.flip(2))
    assert torch.equal(batch.targets, plain.targets.flip(1))
    slice_above = (ids + 12 * 15)[:4]
    assert torch.equal(bank.batch(ids[:4]).inputs[:, 8:], still.batch(slice_above).inputs)
    again = pickle.loads(pickle.dumps(bank.regroup("tumor")))
    assert (again.slices_around, again.kind) == (1, "tumor")
    assert torch.equal(again.batch(ids).inputs, bank.batch(ids).inputs)
    with pytest.raises(UsageError, match="out holds"):
        bank.batch(ids, out=plain)


@pytest.mark.parametrize(
    ("size", "n", "message"),
    [
        ((8, 8), 6, "13 slices; the volume of BraTS2021_00000 has 12"),
        ((8, 8), -1, "0 or more"),
        ((2, 8, 8), 1, "0 for a 3-D patch"),
    ],
)
def test_slices_around_that_cannot_be_are_refused(
    small_bank: Path, size: tuple[int, ...], n: int, message: str
) -> None:
    with pytest.raises(UsageError, match=f"slices_around {n}: .*{message}"):
        PatchBank(small_bank, patch_size=size, slices_around=n)


def test_volumes_cannot_be_written(small_bank: Path) -> None:
    for array in PatchBank(small_bank, patch_size=(8, 8)).volume(0):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_no_bank_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"bank\.json.*brats-seg preprocess"):
        PatchBank(tmp_path)


def test_another_schema_version_is_refused(copied: Path) -> None:
    change(copied, schema_version=99)
    with pytest.raises(InputError, match="schema version 99; this program reads 1"):
        PatchBank(copied)


def test_a_list_that_lacks_something_is_refused(copied: Path) -> None:
    tree = json.loads((copied / "bank.json").read_text())
    del tree["cases"][1]["counts"]
    (copied / "bank.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match=r"bank\.json: cases\.1\.counts: Field required; build"):
        PatchBank(copied)
    (copied / "bank.json").write_text('{"schema_version": 1, "cases": []}')
    with pytest.raises(InputError, match=r"bank\.json: modalities: Field required; build"):
        PatchBank(copied)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("counts", [1, "a"]),
        ("counts", [1]),
        ("shape", None),
        ("shape", [3, 4]),
        ("bytes", 7),
        ("sha256", [1, 2, 3]),
        ("id", "../elsewhere"),
        ("id", "a\nb"),
        ("shape", [10, 12, -15]),
        ("shape", [10, 12, True]),
        ("shape", [10, 12, 15.0]),
        ("counts", [1752, 8, 36, 5]),
        ("offsets", [0, 1752, 1760, 1796, 1801]),
        ("origin", [100, 1, 1]),
        ("patient", 5),
    ],
)
def test_a_list_with_something_else_in_a_place_is_refused(copied: Path, key: str, value: object) -> None:
    tree = json.loads((copied / "bank.json").read_text())
    tree["cases"][1][key] = value
    (copied / "bank.json").write_text(json.dumps(tree))
    with pytest.raises(
        InputError,
        match=rf"bank\.json: cases\.1.*{key}.*; build the bank again|bank\.json: .*: counts of 1 classes",
    ):
        PatchBank(copied)


def test_a_list_that_is_none_is_refused(copied: Path) -> None:
    sound = json.loads((copied / "bank.json").read_text())["cases"]
    for changes in (
        {"cases": [5]},
        {"cases": None},
        {"cases": []},
        {"cases": [sound[0], sound[0]]},
        {"classes": 3},
        {"classes": ["healthy", "edema", "edema", "enhancing_core"]},
        {"classes": ["edema", "healthy", "necrotic_core", "enhancing_core"]},
        {"classes": ["healthy"]},
        {"modalities": [1]},
        {"modalities": ["t1n", "t1n"]},
        {"spacing_mm": [1, 1, 0]},
        {"spacing_mm": [1, 1, float("nan")]},
        {"normalization": {}},
        {"normalization": {"percentiles": [99, 1], "n4": False}},
        {"folds": "x"},
    ):
        tree = json.loads((copied / "bank.json").read_text())
        (copied / "bank.json").write_text(json.dumps(tree | changes))
        with pytest.raises(InputError, match=r"bank\.json: .+; build the bank again"):
            PatchBank(copied)
        (copied / "bank.json").write_text(json.dumps(tree))


@pytest.mark.parametrize("name", FILES)
def test_a_changed_size_is_refused_before_the_first_batch(copied: Path, name: str) -> None:
    with (copied / "cases" / "BraTS2021_00002" / name).open("ab") as file:
        file.write(b"x")
    message = rf"BraTS2021_00002.*{name}: \d+ bytes; it was built with \d+"
    bank = PatchBank(copied, patch_size=(8, 8))
    with pytest.raises(InputError, match=message):
        bank.batch(np.zeros(1, np.int64))
    with pytest.raises(InputError, match=message):
        bank.volume(0)
    with pytest.raises(InputError, match=message):
        bank.select(["BraTS2021_00000", "BraTS2021_00002"])
    assert bank.select(["BraTS2021_00000"]).batch(np.zeros(1, np.int64)).counts.sum() == 64
    (copied / "cases" / "BraTS2021_00002" / name).unlink()
    with pytest.raises(InputError, match=rf"BraTS2021_00002.*{name}: missing"):
        bank.batch(np.zeros(1, np.int64))


def test_a_changed_digest_is_found_by_verify(copied: Path) -> None:
    assert verify_bank(copied) == ()
    path = copied / "cases" / "BraTS2021_00001" / "image.npy"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    (copied / "folds.json").write_text("{}")
    (copied / "cases" / "BraTS2021_00003" / "voxels.npy").unlink()
    assert [(p.case, Path(p.file).name) for p in verify_bank(copied)] == [
        ("", "folds.json"),
        ("BraTS2021_00001", "image.npy"),
        ("BraTS2021_00003", "voxels.npy"),
    ]
    with pytest.raises(InputError, match=r"folds\.json: missing or changed"):
        _ = PatchBank(copied, patch_size=(8, 8)).folds


def relist(bank: Path, case_id: str) -> None:
    """Make the list say that the files of a case are as they should be."""
    tree = json.loads((bank / "bank.json").read_text())
    for case in tree["cases"]:
        if case["id"] == case_id:
            case["sha256"] = [sha256(bank / "cases" / case_id / name) for name in FILES]
    (bank / "bank.json").write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("image.npy", np.float16("nan"), "has values that are NaN or infinite"),
        ("image.npy", np.float16("-inf"), "has values that are NaN or infinite"),
        ("label.npy", np.uint8(200), "and 1 without a class"),
    ],
)
def test_numbers_that_cannot_be_are_found_by_verify_whatever_the_checksums(
    copied: Path, name: str, value: np.generic, said: str
) -> None:
    folder = copied / "cases" / "BraTS2021_00000"
    array = np.load(folder / name)
    array.reshape(-1)[1000] = value
    np.save(folder / name, array)
    (folder / "case.json").unlink()
    relist(copied, "BraTS2021_00000")
    (problem,) = verify_bank(copied)
    assert problem.file == str(folder / name)
    assert said in problem.what
    if name == "label.npy":
        with pytest.raises(
            InputError, match=r"label\.npy: has voxels of an unknown class; build the bank again"
        ):
            PatchBank(copied, patch_size=(8, 8)).volume(0)


@pytest.mark.parametrize(
    "folds", [[["BraTS2021_00000"]], [["elsewhere"]], [[]], [], [["BraTS2021_00000"], 5], "x"]
)
def test_folds_that_do_not_deal_the_cases_are_refused_and_found_by_verify(
    copied: Path, folds: object
) -> None:
    (copied / "folds.json").write_text(json.dumps({"schema_version": 1, "seed": 0, "folds": folds}))
    change(copied, folds=sha256(copied / "folds.json"))
    with pytest.raises(InputError, match=r"folds\.json: .*; build the bank again"):
        _ = PatchBank(copied, patch_size=(8, 8)).folds
    (problem,) = verify_bank(copied)
    assert problem.file == str(copied / "folds.json")


def test_a_case_file_that_has_changed_is_found_by_verify(copied: Path) -> None:
    for i, case_id in enumerate(("BraTS2021_00000", "BraTS2021_00001", "BraTS2021_00002")):
        path = copied / "cases" / case_id / "case.json"
        tree = json.loads(path.read_text())
        if i == 0:
            tree["layout"] = "other"
        else:
            del tree["checksum"]
            tree["origin"] = [0, 0, 0] if i == 1 else "0 0 0"
        path.write_text(json.dumps(tree))
    assert [(p.case, p.what) for p in verify_bank(copied)][:2] == [
        ("BraTS2021_00000", "has changed since it was written; build the bank again"),
        ("BraTS2021_00001", "differs from bank.json"),
    ]
    assert verify_bank(copied)[2].what.startswith("origin: ")


def test_a_file_of_the_right_size_and_another_shape_is_refused_when_mapped(copied: Path) -> None:
    path = copied / "cases" / "BraTS2021_00000" / "label.npy"
    np.save(path, np.load(path).reshape(12, 10, 15))
    bank = PatchBank(copied, patch_size=(8, 8))
    with pytest.raises(InputError, match=r"not \(10, 12, 15\)"):
        bank.volume(0)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((17, 8), r"larger than the volume of BraTS2021_00000; the largest possible is \(16, 20\)"),
        ((13, 8, 8), r"\(12, 16, 20\)"),
        ((8,), "two"),
        ((0, 8), "1"),
    ],
)
def test_a_patch_that_cannot_be_is_refused(small_bank: Path, size: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=rf"patch\.size.*{message}"):
        PatchBank(small_bank, patch_size=size)


def test_an_unknown_case_or_id_is_refused(small_bank: Path) -> None:
    with pytest.raises(UsageError, match="case XYZ is not in"):
        PatchBank(small_bank, patch_size=(8, 8), cases=["XYZ"])
    bank = PatchBank(small_bank, patch_size=(8, 8))
    with pytest.raises(InputError, match="case number 4"):
        bank.batch(np.array([4 << 32]))
    with pytest.raises(InputError, match="position 1800 of case number 0, which has 1800 voxels"):
        bank.batch(np.array([1800]))
    with pytest.raises(InputError, match=r"case number 4; the bank has 0\.\.3"):
        bank.volume(4)


MANY = """
import json, os, resource, sys
from pathlib import Path
import numba, numpy as np, torch
import brats_seg.bank.gather_kernels
def anonymous():
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) / 1024
before = anonymous()
resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
from brats_seg.bank.bank import PatchBank
from brats_seg.imbalance.samplers import make_sampler
torch.set_num_threads(1)
bank = PatchBank(sys.argv[1])
sampler = make_sampler("balanced", bank.index, batch_size=120, steps=1000, seed=0)
seen = set()
out = None
for _ in range(int(sys.argv[2])):
    ids = sampler.next().ids
    seen |= set((ids >> 32).tolist())
    out = bank.batch(ids, out=out)
print(len(seen), len(os.listdir("/proc/self/fd")), anonymous() - before)
"""


@pytest.mark.parametrize("n_batches", [100, pytest.param(1000, marks=pytest.mark.campaign)])
def test_a_bank_of_1251_cases_needs_few_descriptors_and_little_memory(tmp_path: Path, n_batches: int) -> None:
    """Sparse files: every position is 0, the first voxel of its case. Small ones, as some disks read 8 MB
    ahead of each touch.
    """
    shape, counts = (20, 80, 80), [100_000, 2_000, 6_000, 2_000]
    cases = []
    for i in range(1251):
        folder = tmp_path / "cases" / f"case{i:05}"
        folder.mkdir(parents=True)
        sizes = []
        for name, dtype, size in zip(
            FILES, ("<f2", "|u1", "<u4"), ((*shape, 4), shape, (sum(counts),)), strict=True
        ):
            with (folder / name).open("wb") as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": dtype, "fortran_order": False, "shape": size}
                )
                sizes.append(file.tell() + int(np.prod(size)) * np.dtype(dtype).itemsize)
                file.truncate(sizes[-1])
        cases.append(
            {
                "id": folder.name,
                "patient": folder.name,
                "schema": "brats2017",
                "shape": shape,
                "origin": (0, 0, 0),
                "grid_shape": (155, 240, 240),
                "spacing_mm": (1.0, 1.0, 1.0),
                "counts": counts,
                "offsets": [0, *np.cumsum(counts).tolist()],
                "bytes": sizes,
                "sha256": ["0" * 64] * 3,
            }
        )
    tree = {"schema_version": 1, "modalities": ["t1n", "t1c", "t2w", "t2f"], "spacing_mm": [1.0, 1.0, 1.0]}
    tree |= {
        "classes": ["healthy", "necrotic_core", "edema", "enhancing_core"],
        "normalization": {"percentiles": [1, 99], "n4": False},
    }
    (tmp_path / "bank.json").write_text(json.dumps(tree | {"folds": "0" * 64, "cases": cases}))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MANY, str(tmp_path), str(n_batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    n_cases, n_descriptors, n_mib = done.stdout.split()
    assert int(n_cases) > 1200
    assert int(n_descriptors) < 50
    assert float(n_mib) < 300
    print(f"{n_batches} batches: {float(n_mib):.0f} MiB of anonymous memory, {n_descriptors} descriptors")
