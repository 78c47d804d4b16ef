"""A bank is made case by case, and goes on where it was."""

import errno
import json
import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_scans import SHAPE, small_scan, write_cohort, write_scan

from brats_seg.bank import build, entry
from brats_seg.bank.bank import PatchBank
from brats_seg.bank.build import BuildOptions, build_bank
from brats_seg.bank.entry import EntryResult, EntryTask, disk_needed
from brats_seg.bank.listing import hold_bank, verify_bank
from brats_seg.bank.records import READERS_LOCK
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import lock, sha256
from brats_seg.core.outcome import Outcome, WorkerDiedError
from brats_seg.scans.case import MODALITIES, Case, ScanFile
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.volume import write_volume


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_cohort(tmp_path / "data", n_cases=3)


def files_of(bank: Path) -> dict[str, str]:
    """Checksum of every file of a bank that a reader opens."""
    return {
        str(p.relative_to(bank)): sha256(p) for p in sorted(bank.rglob("*")) if p.suffix in (".npy", ".json")
    }


def times_of(bank: Path) -> dict[str, int]:
    return {p.parent.name: p.stat().st_mtime_ns for p in bank.glob("cases/*/image.npy")}


def test_a_bank_holds_what_its_list_says(data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = build_bank(data, tmp_path / "bank", say=said.append, options=BuildOptions(n_folds=2))
    assert (report.done, report.skipped, report.refused, report.complete) == (
        tuple(f"BraTS2021_{i:05}" for i in range(3)),
        (),
        (),
        True,
    )
    assert any("3 cases to prepare; they need about 0.00 GB" in line for line in said)
    tree = json.loads((tmp_path / "bank" / "bank.json").read_text())
    for case in tree["cases"]:
        folder = tmp_path / "bank" / "cases" / case["id"]
        image, label, voxels = (np.load(folder / name) for name in ("image.npy", "label.npy", "voxels.npy"))
        assert (image.dtype, label.dtype, voxels.dtype) == (np.float16, np.uint8, np.uint32)
        assert list(label.shape) == case["shape"] == list(image.shape[:3])
        assert case["sha256"] == [sha256(folder / name) for name in ("image.npy", "label.npy", "voxels.npy")]
        for k, (first, stop) in enumerate(zip(case["offsets"][:-1], case["offsets"][1:], strict=True)):
            assert stop - first == case["counts"][k]
            assert np.array_equal(voxels[first:stop], np.flatnonzero(label.reshape(-1) == k))


def test_a_finished_case_is_not_redone_and_the_result_is_the_same(data: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    build_bank(data, bank)
    first, times = files_of(bank), times_of(bank)
    shutil.rmtree(bank / "cases" / "BraTS2021_00001")
    report = build_bank(data, bank)
    assert (report.done, report.skipped) == (("BraTS2021_00001",), ("BraTS2021_00000", "BraTS2021_00002"))
    again = times_of(bank)
    assert [case for case in times if again[case] != times[case]] == ["BraTS2021_00001"]
    assert files_of(bank) == first


def test_a_build_killed_between_two_cases_goes_on(data: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    child = os.fork()
    if child == 0:
        write = entry._write_folder

        def die_at_the_second(task: EntryTask, *args: object, **more: object) -> None:
            if task.case.id.endswith("1"):
                (bank / "cases" / f".{task.case.id}.{os.getpid()}.part").mkdir()
                os.kill(os.getpid(), signal.SIGKILL)
            write(task, *args, **more)  # type: ignore[arg-type]

        entry._write_folder = die_at_the_second  # type: ignore[assignment]
        build_bank(data, bank)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (bank / "bank.json").exists()
    report = build_bank(data, bank)
    assert report.skipped == ("BraTS2021_00000",)
    assert report.done == ("BraTS2021_00001", "BraTS2021_00002")
    assert sorted(p.name for p in (bank / "cases").iterdir()) == [f"BraTS2021_0000{i}" for i in range(3)]


def test_a_build_killed_before_its_first_case_goes_on(data: Path, tmp_path: Path) -> None:
    """It leaves the folder of the cases and its lock; both were refused as a folder that is no bank."""
    for bank in (tmp_path / "a", tmp_path / "b"):
        (bank / "cases").mkdir(parents=True)
    (tmp_path / "b" / ".build.lock").touch()
    assert build_bank(data, tmp_path / "a").complete
    assert build_bank(data, tmp_path / "b").complete


def test_a_scan_is_hashed_again_only_when_its_size_or_time_changed(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = tmp_path / "bank"
    build_bank(data, bank)
    hashed: list[str] = []
    monkeypatch.setattr(entry, "sha256", lambda path: hashed.append(path.name) or sha256(path))
    assert build_bank(data, bank).done == ()
    assert hashed == []
    touched = data / "BraTS2021_00000" / "BraTS2021_00000_t2.nii.gz"
    os.utime(touched)
    assert build_bank(data, bank).done == ()
    assert touched.name in hashed
    hashed.clear()
    assert build_bank(data, bank).done == ()
    assert hashed == []
    volumes, _ = small_scan(99)
    write_volume(touched, volumes["t2"], make_geometry(volumes["t2"].shape), dtype="int16")
    assert build_bank(data, bank).done == ("BraTS2021_00000",)


def test_another_channel_of_the_same_file_is_another_scan(tmp_path: Path) -> None:
    """A `dataset.json` whose channels were named in the wrong order, and mended: the file itself has not
    changed.
    """
    volumes, label = small_scan(0)
    (tmp_path / "data").mkdir()
    write_volume(
        tmp_path / "data" / "a.nii.gz",
        np.stack(list(volumes.values()), axis=-1),
        make_geometry(SHAPE),
        dtype="int16",
    )
    write_volume(tmp_path / "data" / "a_label.nii.gz", label, make_geometry(SHAPE), dtype="uint8")
    label_file = ScanFile(tmp_path / "data" / "a_label.nii.gz")

    def task(order: tuple[int, ...]) -> EntryTask:
        files = {
            name: ScanFile(tmp_path / "data" / "a.nii.gz", channel)
            for name, channel in zip(MODALITIES, order, strict=True)
        }
        classes = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
        case = Case("a", "a", "msd", "brats2017", files, label_file, tmp_path / "data")
        return EntryTask(case, tmp_path / "bank", entry.Settings(MODALITIES, classes), threads=1)

    (tmp_path / "bank" / "cases").mkdir(parents=True)
    assert not entry.write_entry(task((0, 1, 2, 3))).refused
    assert entry.find_entry(task((0, 1, 2, 3))) is not None
    assert entry.find_entry(task((1, 0, 2, 3))) is None


def test_a_folder_of_scans_that_moved_is_not_done_again(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bank(data, tmp_path / "bank")
    data.rename(tmp_path / "moved")
    monkeypatch.setattr(entry, "sha256", lambda path: pytest.fail(f"{path} was hashed"))
    assert build_bank(tmp_path / "moved", tmp_path / "bank").done == ()


@pytest.mark.parametrize("note", ["{", "[]", "{}"])
def test_a_damaged_note_of_a_case_makes_it_again(data: Path, tmp_path: Path, note: str) -> None:
    build_bank(data, tmp_path / "bank")
    (tmp_path / "bank" / "cases" / "BraTS2021_00002" / "case.json").write_text(note)
    assert build_bank(data, tmp_path / "bank").done == ("BraTS2021_00002",)


@pytest.mark.parametrize("key", ["counts", "origin", "spacing_mm", "digests", "layout", "checksum"])
def test_a_note_of_a_case_that_was_changed_makes_it_again(data: Path, tmp_path: Path, key: str) -> None:
    build_bank(data, tmp_path / "bank")
    listed = (tmp_path / "bank" / "bank.json").read_bytes()
    path = tmp_path / "bank" / "cases" / "BraTS2021_00002" / "case.json"
    tree = json.loads(path.read_text())
    tree[key] = {
        "counts": [1, *tree["counts"][1:]],
        "origin": [0, 0, 0],
        "spacing_mm": [1.0, 1.0, 2.0],
        "digests": {},
    }.get(key, "0" * 64)
    path.write_text(json.dumps(tree))
    assert build_bank(data, tmp_path / "bank").done == ("BraTS2021_00002",)
    assert (tmp_path / "bank" / "bank.json").read_bytes() == listed


def test_a_note_of_an_older_version_has_no_checksum_and_is_taken(data: Path, tmp_path: Path) -> None:
    build_bank(data, tmp_path / "bank")
    path = tmp_path / "bank" / "cases" / "BraTS2021_00002" / "case.json"
    tree = json.loads(path.read_text())
    del tree["checksum"]
    path.write_text(json.dumps(tree))
    assert build_bank(data, tmp_path / "bank").done == ()
    assert verify_bank(tmp_path / "bank") == ()


@pytest.mark.parametrize("note", ["{", "[]", "{}"])
def test_a_damaged_note_of_a_refusal_is_written_anew(data: Path, tmp_path: Path, note: str) -> None:
    (data / "BraTS2021_00001" / "BraTS2021_00001_t1.nii.gz").write_bytes(b"")
    first = build_bank(data, tmp_path / "bank")
    (tmp_path / "bank" / "refused" / "BraTS2021_00001.json").write_text(note)
    assert build_bank(data, tmp_path / "bank", options=BuildOptions(part=(1, 3))).missing == (
        "BraTS2021_00001",
    )
    assert build_bank(data, tmp_path / "bank").refused == first.refused


def test_cases_of_an_earlier_build_that_are_left_out_are_said(data: Path, tmp_path: Path) -> None:
    build_bank(data, tmp_path / "bank")
    write_scan(tmp_path / "others", "BraTS2021_00050", seed=50)
    report = build_bank(tmp_path / "others", tmp_path / "bank")
    assert report.exit_code == 0
    assert any(
        "3 cases of an earlier build, such as BraTS2021_00000" in problem.what for problem in report.problems
    )


@pytest.mark.parametrize(
    "percentiles", [(99.5, 0.5), (50.0, 50.0), (-1.0, 99.0), (0.0, 101.0), (float("nan"), 99.0)]
)
def test_percentiles_that_do_not_rise_are_refused(
    data: Path, tmp_path: Path, percentiles: tuple[float, float]
) -> None:
    with pytest.raises(UsageError, match=r"--percentiles .*0 to 100"):
        build_bank(data, tmp_path / "bank", options=BuildOptions(percentiles=percentiles))


@pytest.mark.parametrize(
    ("other", "was", "asked"),
    [
        ({"percentiles": (1.0, 99.0)}, "--percentiles 0.5 99.5", "--percentiles 1.0 99.0"),
        ({"n4": True}, "no --n4", "--n4"),
        ({"resample": True}, "no --resample", "--resample"),
        ({"modalities": ("t1c", "t2f")}, "modalities t1n t1c t2w t2f", "modalities t1c t2f"),
        ({"n_folds": 2}, "--folds 3 --seed 0", "--folds 2 --seed 0"),
        ({"seed": 1}, "--folds 3 --seed 0", "--folds 4 --seed 1"),
    ],
)
def test_a_finished_bank_keeps_its_settings_and_folds(
    data: Path, tmp_path: Path, other: dict[str, Any], was: str, asked: str
) -> None:
    bank = tmp_path / "bank"
    build_bank(data, bank)
    before = files_of(bank)
    with pytest.raises(
        UsageError,
        match=f"bank: this bank is finished, with {was}; this command asks for {asked}; .*--rebuild",
    ):
        build_bank(data, bank, options=BuildOptions(**other))
    assert files_of(bank) == before


def test_a_rebuild_gives_other_settings_to_every_case_and_other_folds_to_none(
    data: Path, tmp_path: Path
) -> None:
    bank = tmp_path / "bank"
    build_bank(data, bank)
    assert build_bank(data, bank, options=BuildOptions(n_folds=2, rebuild=True)).done == ()
    assert len(PatchBank(bank, patch_size=(4, 4)).folds) == 2
    assert (
        len(
            build_bank(
                data, bank, options=BuildOptions(n_folds=2, percentiles=(1.0, 99.0), rebuild=True)
            ).done
        )
        == 3
    )
    build_bank(data, tmp_path / "new", options=BuildOptions(n_folds=2, percentiles=(1.0, 99.0)))
    assert files_of(bank) == files_of(tmp_path / "new")


def test_a_rebuild_makes_a_damaged_case_again(data: Path, tmp_path: Path) -> None:
    bank = tmp_path / "bank"
    build_bank(data, bank)
    before = files_of(bank)
    image = bank / "cases" / "BraTS2021_00001" / "image.npy"
    image.write_bytes(image.read_bytes()[:-2] + b"ab")
    assert build_bank(data, bank).done == ()
    assert build_bank(data, bank, options=BuildOptions(rebuild=True)).done == ("BraTS2021_00001",)
    assert files_of(bank) == before


def test_a_bank_that_is_held_is_not_changed(data: Path, tmp_path: Path) -> None:
    """A build that has nothing to do goes through; one with a case to make, another fold or a case less is
    refused.
    """
    bank = tmp_path / "bank"
    build_bank(data, bank)
    before = files_of(bank)
    with hold_bank(bank):
        assert build_bank(data, bank).done == ()
        for more in ({"percentiles": (1.0, 99.0)}, {"n_folds": 2}):
            with pytest.raises(InputError, match="a training or another reader uses this bank"):
                build_bank(data, bank, options=BuildOptions(**more, rebuild=True))
        (data / "BraTS2021_00002").rename(tmp_path / "aside")
        with pytest.raises(InputError, match="a training or another reader uses this bank"):
            build_bank(data, bank)
        assert files_of(bank) == before
    assert build_bank(data, bank).skipped == ("BraTS2021_00000", "BraTS2021_00001")


def test_a_bank_that_is_about_to_change_is_not_held(data: Path, tmp_path: Path) -> None:
    build_bank(data, tmp_path / "bank")
    with (
        lock(tmp_path / "bank" / READERS_LOCK),
        pytest.raises(InputError, match="`brats-seg preprocess` is changing this bank"),
        hold_bank(tmp_path / "bank"),
    ):
        pass


def test_a_bank_is_held_without_a_lock_where_nothing_can_be_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_bank(data, tmp_path / "bank")
    opened = Path.open

    def read_only(path: Path, mode: str = "r", **more: Any) -> Any:
        if "a" in mode:
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return opened(path, mode, **more)

    monkeypatch.setattr(Path, "open", read_only)
    with hold_bank(tmp_path / "bank"):
        assert len(PatchBank(tmp_path / "bank", patch_size=(4, 4)).cases) == 3


def test_a_file_cut_short_under_a_reader_ends_it_with_one_line(data: Path, tmp_path: Path) -> None:
    bank, reader, writer = tmp_path / "bank", *os.pipe()
    build_bank(data, bank)
    image = bank / "cases" / "BraTS2021_00001" / "image.npy"
    child = os.fork()
    if child == 0:
        os.dup2(writer, 2)
        with hold_bank(bank):
            volume, _ = PatchBank(bank, patch_size=(4, 4)).volume(1)
            os.truncate(image, 100)
            float(volume[-1, -1, -1, -1])
        os._exit(0)
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    said = os.read(reader, 10_000).decode()
    os.close(reader)
    assert said.startswith(f"brats-seg: {bank}: a file was truncated while it was read")
    assert said.count("\n") == 1


def test_parts_in_any_order_give_the_whole(data: Path, tmp_path: Path) -> None:
    build_bank(data, tmp_path / "whole")
    second = build_bank(data, tmp_path / "parts", options=BuildOptions(part=(2, 2)))
    assert second.done == ("BraTS2021_00001",)
    assert second.missing == ("BraTS2021_00000", "BraTS2021_00002")
    assert not second.complete
    assert not (tmp_path / "parts" / "bank.json").exists()
    assert build_bank(data, tmp_path / "parts", options=BuildOptions(part=(1, 2))).complete
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_a_bad_case_is_refused_by_name_and_the_others_are_done(data: Path, tmp_path: Path) -> None:
    seg = data / "BraTS2021_00001" / "BraTS2021_00001_seg.nii.gz"
    write_volume(seg, np.full((12, 16, 20), 7, np.uint8), make_geometry((12, 16, 20)), dtype="uint8")
    write_scan(data, "BraTS2021_00007", with_label=False)
    write_scan(data, "BraTS2021_00008", spacing_mm=(1.0, 1.0, 2.0))
    for _ in range(2):
        report = build_bank(data, tmp_path / "bank")
        assert report.exit_code == 1
        assert report.complete
        wrong = {problem.case: str(problem) for problem in report.refused}
        assert sorted(wrong) == ["BraTS2021_00001", "BraTS2021_00007", "BraTS2021_00008"]
        assert "7" in wrong["BraTS2021_00001"]
        assert "no label" in wrong["BraTS2021_00007"]
        assert "1 x 1 x 2 mm" in wrong["BraTS2021_00008"]
        assert "--resample" in wrong["BraTS2021_00008"]
        assert [case.id for case in PatchBank(tmp_path / "bank", patch_size=(4, 4)).cases] == [
            "BraTS2021_00000",
            "BraTS2021_00002",
        ]
    assert (
        build_bank(data, tmp_path / "resampled", options=BuildOptions(resample=True)).done[-1]
        == "BraTS2021_00008"
    )


def test_a_case_whose_worker_dies_is_refused_and_tried_again_by_the_next_build(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def one_dies(
        function: Callable[[EntryTask], EntryResult], tasks: Sequence[EntryTask], **more: object
    ) -> Iterator[Outcome]:
        for task in tasks:
            died = task.case.id == "BraTS2021_00001"
            yield (
                Outcome(task, error=WorkerDiedError("killed"))
                if died
                else Outcome(task, value=function(task))
            )

    with monkeypatch.context() as patch:
        patch.setattr(build, "run_tasks", one_dies)
        report = build_bank(data, tmp_path / "bank")
    assert report.done == ("BraTS2021_00000", "BraTS2021_00002")
    assert [problem.case for problem in report.refused] == ["BraTS2021_00001"]
    assert "WorkerDiedError" in str(report.refused[0])
    assert build_bank(data, tmp_path / "bank").done == ("BraTS2021_00001",)


def test_processes_make_the_same_bank(data: Path, tmp_path: Path) -> None:
    build_bank(data, tmp_path / "one")
    build_bank(data, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_full_disk_ends_the_build(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(entry, "write_json", full)
    with pytest.raises(InputError, match="the disk is full at BraTS2021_00000"):
        build_bank(data, tmp_path / "bank")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_write_that_is_cut_short_ends_the_build_and_leaves_nothing_half_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """A limit on the size of files cuts a write as a full disk does, and NumPy raises an error without a
    number.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(build, "check_disk", lambda *args: None)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, before[1]))
        with pytest.raises(
            InputError, match=r"bank: the disk is full at BraTS2021_0000\d; .*finished cases are kept"
        ) as caught:
            build_bank(data, tmp_path / "bank", workers=workers)
        assert multiprocessing.active_children() == []
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert "\n" not in str(caught.value)
    assert workers == 2 or not list(
        (tmp_path / "bank" / "cases").iterdir()
    )  # a worker that is stopped leaves what the next build clears


def test_a_case_that_gets_bad_leaves_the_bank(data: Path, tmp_path: Path) -> None:
    build_bank(data, tmp_path / "bank")
    (data / "BraTS2021_00000" / "BraTS2021_00000_t2.nii.gz").write_bytes(b"no scan")
    assert [problem.case for problem in build_bank(data, tmp_path / "bank").refused] == ["BraTS2021_00000"]
    assert len(PatchBank(tmp_path / "bank", patch_size=(4, 4)).cases) == 2
    assert not (tmp_path / "bank" / "cases" / "BraTS2021_00000").exists()


def test_cases_that_share_a_scan_are_one_patient(data: Path, tmp_path: Path) -> None:
    write_scan(data, "BraTS2021_00009", seed=0)
    report = build_bank(data, tmp_path / "bank", options=BuildOptions(n_folds=4))
    assert any(p.case == "BraTS2021_00009" and "one patient" in p.what for p in report.problems)
    assert any("3 folds instead of 4" in p.what for p in report.problems)
    folds = PatchBank(tmp_path / "bank", patch_size=(4, 4)).folds
    assert ("BraTS2021_00000", "BraTS2021_00009") in folds


def write_2013(data: Path) -> None:
    """A case of 2013 without enhancing core, HG/0001."""
    volumes, label = small_scan(5, enhancing=False)
    roles = {"MR_T1": "t1", "MR_T1c": "t1ce", "MR_T2": "t2", "MR_Flair": "flair"}
    for role, volume in {**{role: volumes[name] for role, name in roles.items()}, "OT": label}.items():
        name = f"VSD.Brain.XX.O.{role}.1"
        (data / "HG" / "0001" / name).mkdir(parents=True)
        path = data / "HG" / "0001" / name / f"{name}.mha"
        write_volume(path, volume, make_geometry(label.shape), dtype=volume.dtype.name)


def test_a_refused_case_that_keeps_classes_merged_is_named(tmp_path: Path) -> None:
    write_2013(tmp_path / "data")
    bad = write_scan(tmp_path / "data", "BraTS2021_00000") / "BraTS2021_00000_flair.nii.gz"
    bad.write_bytes(bad.read_bytes()[:200])
    report = build_bank(tmp_path / "data", tmp_path / "bank")
    assert report.classes == ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
    (said,) = [p for p in report.problems if "because of it" in p.what]
    assert (said.case, said.severity) == ("BraTS2021_00000", "warning")
    assert "distinguish healthy, necrotic_core, edema, non_enhancing_core, enhancing_core" in said.what
    bad.parent.rename(tmp_path / "aside")
    report = build_bank(tmp_path / "data", tmp_path / "without")
    assert not [p for p in report.problems if "because of it" in p.what]


def test_a_merged_class_and_an_absent_class_are_said(tmp_path: Path) -> None:
    write_scan(tmp_path / "data", "BraTS2021_00000", enhancing=False)
    write_2013(tmp_path / "data")
    said: list[str] = []
    report = build_bank(tmp_path / "data", tmp_path / "bank", say=said.append)
    assert report.classes == ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
    assert any(line.startswith("brats2013 has more tissue classes than brats2017") for line in said)
    assert [p.what for p in report.problems if "occurs in no case" in p.what] == [
        "tissue class enhancing_core occurs in no case"
    ]


def test_too_little_disk_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"3 cases need about 0\.00 GB, 0\.00 GB are free"):
        build_bank(data, tmp_path / "bank")
    assert not list((tmp_path / "bank" / "cases").iterdir())


def test_the_disk_needed_is_the_boxes_of_the_brains(data: Path, tmp_path: Path) -> None:
    needed = disk_needed(find_cases(data).cases, n_modalities=4)
    build_bank(data, tmp_path / "bank")
    used = sum(p.stat().st_size - 128 for p in (tmp_path / "bank").rglob("*.npy"))
    assert used <= needed <= 1.25 * used


def test_wrong_ways_to_build(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--part 3/2"):
        build_bank(data, tmp_path / "bank", options=BuildOptions(part=(3, 2)))
    with pytest.raises(InputError, match="not empty and is not a bank"):
        build_bank(data, data)
    (tmp_path / "nested").mkdir()
    data.rename(tmp_path / "nested" / "cases")
    with pytest.raises(InputError, match="not empty and is not a bank"):
        build_bank(tmp_path / "nested", tmp_path / "nested")
    (tmp_path / "nested" / "cases").rename(data)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no case"):
        build_bank(tmp_path / "empty", tmp_path / "bank")
    build_bank(data, tmp_path / "bank")
    with (
        lock(tmp_path / "bank" / ".part-1-of-1.lock"),
        pytest.raises(InputError, match="held by another process"),
    ):
        build_bank(data, tmp_path / "bank")
    with lock(
        tmp_path / "bank" / ".build.lock", holders="shared"
    ):  # a part at work lets other parts in, and no whole build
        assert build_bank(data, tmp_path / "bank", options=BuildOptions(part=(2, 3))).done == ()
        with pytest.raises(InputError, match="held by another process"):
            build_bank(data, tmp_path / "bank")


def test_every_case_refused_is_an_error_that_lists_them(data: Path, tmp_path: Path) -> None:
    for label in data.glob("*/*_t2.nii.gz"):
        label.write_bytes(b"")
    with pytest.raises(
        InputError, match=r"every case was refused\n.*BraTS2021_00000(.*\n)*.*BraTS2021_00002"
    ):
        build_bank(data, tmp_path / "bank")


def test_real_cases(real_data: Path, tmp_path: Path) -> None:
    report = build_bank(real_data / "BraTS2020", tmp_path / "bank")
    assert report.complete
    bank = PatchBank(tmp_path / "bank")
    assert bank.cases[0].n_voxels[1:] == (15443, 168794, 27742)
