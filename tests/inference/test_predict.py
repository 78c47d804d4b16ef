import csv
import gzip
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK
import torch
from torch import nn

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.runtime import Precision
from brats_seg.inference import intake
from brats_seg.inference import predict as predicting
from brats_seg.inference.options import PredictOptions, Settings
from brats_seg.inference.predict import predict_cases, predict_one
from brats_seg.inference.segmenter import Segmenter
from brats_seg.scans.case import MODALITIES, Case, ScanFile
from brats_seg.scans.geometry import make_geometry
from brats_seg.scans.loaded import load_case
from brats_seg.scans.volume import read_volume, write_volume

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
SHAPE = (12, 18, 15)
ORIENTATIONS = ["".join(codes) for codes in product("LR", "PA", "SI")]


class BrightestChannel(nn.Module):
    """Class = the brightest modality of the voxel: what a person can work out from the scans."""

    def forward(self, x):
        return x


def segmenter(**changes) -> Segmenter:
    return replace(Segmenter(BrightestChannel(), MODALITIES, CLASSES, percentiles=(0.0, 100.0)), **changes)


def scans(seed: int = 0) -> np.ndarray:
    """(Z, Y, X, M): an off-center brain of 600 voxels, each modality a shuffle of the same values, so
    z-scores keep their order.
    """
    rng = np.random.default_rng(seed)
    volume = np.zeros((*SHAPE, 4), np.int16)
    for m in range(4):
        volume[2:8, 3:13, 4:14, m] = rng.permutation(np.arange(600, dtype=np.int16) + 100).reshape(6, 10, 10)
    return volume


def expected(volume: np.ndarray) -> np.ndarray:
    return np.where(volume.any(axis=-1), volume.argmax(axis=-1), 0).astype(np.uint8)


def write_scans(
    folder: Path, volume: np.ndarray, *, id: str = "", schema: str = "brats2017", geometry=None, dtype="int16"
) -> Case:
    folder.mkdir(parents=True, exist_ok=True)
    geometry = geometry or make_geometry(SHAPE)
    modalities = {}
    for m, name in enumerate(MODALITIES):
        modalities[name] = ScanFile(folder / f"{name}.nii.gz")
        write_volume(modalities[name].path, volume[..., m], geometry, dtype=dtype)
    return Case(id or folder.name, folder.name, "manifest", schema, modalities, None, folder)


def test_eight_orientations_give_eight_equal_predictions(tmp_path):
    volume = scans()
    cases = [
        write_scans(
            tmp_path / code,
            volume,
            geometry=make_geometry(SHAPE, spacing_mm=(1.02, 1, 0.98), orientation=code),
        )
        for code in ORIENTATIONS
    ]
    report = predict_cases([segmenter()], cases, out=tmp_path / "out")
    assert (report.exit_code, report.problems, len(report.predictions)) == (0, (), 8)
    values = np.array([0, 1, 2, 4], np.uint8)[expected(volume)]
    for case, prediction in zip(cases, report.predictions, strict=True):
        in_lps, _ = read_volume(prediction.path)
        assert np.array_equal(in_lps, values)

        source, ours = (nibabel.load(p) for p in (case.modalities["t1n"].path, prediction.path))
        assert ours.shape == source.shape
        assert np.array_equal(ours.affine, source.affine)
        assert nibabel.aff2axcodes(ours.affine) == tuple(case.id)
        assert ours.get_data_dtype() == np.uint8
        for code in ("qform_code", "sform_code", "xyzt_units"):
            assert ours.header[code] == source.header[code]

        source, ours = (SimpleITK.ReadImage(str(p)) for p in (case.modalities["t1n"].path, prediction.path))
        assert ours.GetSize() == source.GetSize()
        assert ours.GetOrigin() == pytest.approx(source.GetOrigin())
        assert ours.GetDirection() == pytest.approx(source.GetDirection())
        brain = SimpleITK.GetArrayFromImage(source)
        assert not SimpleITK.GetArrayFromImage(ours)[brain == 0].any()


def test_an_oblique_case_comes_back_on_its_own_grid(tmp_path):
    turn = np.deg2rad(20)
    affine = np.array(
        [
            [-np.cos(turn), np.sin(turn), 0, 7],
            [-np.sin(turn), -np.cos(turn), 0, -3],
            [0, 0, 1, 11],
            [0, 0, 0, 1],
        ]
    )
    case = write_scans(tmp_path / "oblique", scans(), geometry=make_geometry(SHAPE, affine=affine))
    (prediction,) = predict_cases([segmenter()], [case], out=tmp_path / "out").predictions
    ours, source = nibabel.load(prediction.path), nibabel.load(case.modalities["t1n"].path)
    assert np.array_equal(ours.affine, source.affine)
    assert np.array_equal(read_volume(prediction.path)[0], np.array([0, 1, 2, 4])[expected(scans())])


@pytest.mark.parametrize(
    ("schema", "values"), [("brats2017", [0, 1, 2, 4]), ("brats2023", [0, 1, 2, 3]), ("msd", [0, 2, 1, 3])]
)
def test_values_are_those_of_the_source(tmp_path, schema, values):
    case = write_scans(tmp_path / "case", scans(), schema=schema)
    (prediction,) = predict_cases([segmenter()], [case], out=tmp_path / "out").predictions
    assert np.array_equal(read_volume(prediction.path)[0], np.array(values)[expected(scans())])


def test_type_is_that_of_the_source_label(tmp_path):
    for dtype in ("int16", "float32"):
        case = write_scans(tmp_path / dtype, scans())
        write_volume(
            tmp_path / f"{dtype}-seg.nii.gz", np.zeros(SHAPE, np.uint8), make_geometry(SHAPE), dtype=dtype
        )
        case = replace(case, label=ScanFile(tmp_path / f"{dtype}-seg.nii.gz"))
        (prediction,) = predict_cases([segmenter()], [case], out=tmp_path / "out").predictions
        assert nibabel.load(prediction.path).get_data_dtype() == np.dtype(dtype)


def test_bad_cases_are_named_and_the_others_done(tmp_path):
    good = [write_scans(tmp_path / name, scans(i)) for i, name in enumerate(("a_good", "z_good"))]
    truncated = write_scans(tmp_path / "truncated", scans())
    file = truncated.modalities["t1c"].path
    file.write_bytes(file.read_bytes()[:200])
    nan = scans().astype(np.float32)
    nan[3, 4, 5, 0] = np.nan
    with_nan = write_scans(tmp_path / "nan", nan, dtype="float32")
    empty = write_scans(tmp_path / "empty", np.zeros_like(scans()))
    lacking = write_scans(tmp_path / "lacking", scans())
    lacking = replace(lacking, modalities={k: v for k, v in lacking.modalities.items() if k != "t2f"})
    cases = [good[0], truncated, with_nan, empty, lacking, good[1], good[1]]
    report = predict_cases([segmenter()], cases, out=tmp_path / "out")
    assert report.exit_code == 1
    assert [p.case for p in report.predictions] == ["a_good", "z_good"]
    named = {p.case: str(p) for p in report.problems}
    assert list(named) == ["truncated", "nan", "empty", "lacking", "z_good"]
    assert "t1c.nii.gz" in named["truncated"]
    assert "NaN" in named["nan"]
    assert "empty" in named["empty"]
    assert "lacks t2f" in named["lacking"]
    assert "second case" in named["z_good"]
    assert all("\n" not in line for line in named.values())
    assert report.summary().endswith("5 refused")
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert files == {
        "a_good.nii.gz",
        "z_good.nii.gz",
        "predictions.csv",
        "labels.ctbl",
        "labels.txt",
        ".predictions.csv.lock",
    }


def test_table_and_continue(tmp_path):
    cases = [
        write_scans(tmp_path / name, scans(i), schema=schema)
        for i, (name, schema) in enumerate((("b", "brats2017"), ("a", "brats2023")))
    ]
    predict_cases([segmenter()], cases[:1], out=tmp_path / "out")
    report = predict_cases(
        [segmenter()], cases, out=tmp_path / "out", options=PredictOptions(skip_finished=True)
    )
    assert (report.skipped, [p.case for p in report.predictions], report.exit_code) == (("b",), ["a"], 0)
    with (tmp_path / "out" / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["case"] for row in rows] == ["a", "b"]
    truth = expected(scans(1))
    assert float(rows[0]["edema_ml"]) == pytest.approx((truth == 2).sum() / 1000)
    assert float(rows[0]["core_ml"]) == pytest.approx(np.isin(truth, (1, 3)).sum() / 1000)
    assert float(rows[0]["whole_ml"]) == pytest.approx((truth > 0).sum() / 1000)
    assert float(rows[0]["seconds"]) > 0
    labels = (tmp_path / "out" / "labels.txt").read_text()
    assert [int(line.split()[0]) for line in labels.splitlines() if not line.startswith("#")] == [
        0,
        1,
        2,
        3,
        4,
    ]  # of both schemas


def test_to_continue_with_another_network_or_other_settings_is_to_begin_anew(tmp_path):
    case, out = write_scans(tmp_path / "a", scans()), tmp_path / "out"

    def skipped(
        *, settings: Settings = Settings(), precision: Precision = "auto", **changes: object
    ) -> tuple[str, ...]:
        return predict_cases(
            [segmenter(**changes)],
            [case],
            out=out,
            options=PredictOptions(skip_finished=True, settings=settings, precision=precision),
        ).skipped

    assert [skipped(checkpoint="1"), skipped(checkpoint="1")] == [(), ("a",)]
    assert [skipped(checkpoint="2"), skipped(checkpoint="2")] == [(), ("a",)]
    assert skipped(checkpoint="2", class_shift=(0.0, 0.0, 1.0, 0.0)) == ()
    assert skipped(checkpoint="2", settings=Settings(min_component_mm3=50.0)) == ()
    assert [skipped(precision="float32"), skipped(precision="float32")] == [(), ("a",)]
    assert skipped(precision="tf32") == ()  # the same type of numbers, other label maps on a GPU


def test_to_continue_in_another_precision_is_to_begin_anew(tmp_path):
    """bfloat16 and float32 give other label maps: a folder must not hold both."""

    class WithWeight(BrightestChannel):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.weight

    case, out = write_scans(tmp_path / "a", scans()), tmp_path / "out"

    def skipped(dtype: torch.dtype) -> tuple[str, ...]:
        return predict_cases(
            [segmenter(network=WithWeight().to(dtype))],
            [case],
            out=out,
            options=PredictOptions(skip_finished=True),
        ).skipped

    assert [skipped(torch.float32), skipped(torch.bfloat16), skipped(torch.bfloat16)] == [(), (), ("a",)]


def test_a_table_of_something_else_is_refused_before_the_first_case(tmp_path):
    (tmp_path / "predictions.csv").write_text("image,label\n1,7\n")
    with pytest.raises(InputError, match=r"predictions\.csv: is not a table that `brats-seg predict` wrote"):
        predict_cases([segmenter()], [write_scans(tmp_path / "a", scans())], out=tmp_path)
    assert not (tmp_path / "a.nii.gz").exists()


def test_a_case_is_not_written_over_by_its_own_segmentation(tmp_path):
    case = write_scans(tmp_path / "data" / "labels" / "a", scans())
    label = tmp_path / "data" / "labels" / "a.nii.gz"
    write_volume(label, np.ones(SHAPE, np.uint8), make_geometry(SHAPE), dtype="uint8")
    case, before = replace(case, label=ScanFile(label)), label.read_bytes()
    (tmp_path / "link").symlink_to(label.parent)
    for out in (label.parent, tmp_path / "link"):
        (problem,) = predict_cases([segmenter()], [case], out=out).problems
        assert (problem.case, problem.what) == (
            "a",
            "is a file of the case itself, which its label map would replace",
        )
    scan = case.modalities["t1n"].path
    assert predict_one([segmenter()], case, out=scan).exit_code == 1
    assert label.read_bytes() == before
    assert read_volume(scan)[0].max() == 699


def test_a_case_that_was_left_half_done_is_done_again(tmp_path):
    out, case = tmp_path / "out", write_scans(tmp_path / "case", scans())

    def go_on() -> tuple[str, ...]:
        return predict_cases(
            [segmenter()],
            [case],
            out=out,
            options=PredictOptions(skip_finished=True, save_probabilities=True),
        ).skipped

    predict_cases([segmenter()], [case], out=out)
    assert go_on() == ()  # the probabilities were not there
    assert (out / "probabilities" / "case.nii.gz").is_file()
    assert go_on() == ("case",)
    (out / "predictions.csv").unlink()
    assert go_on() == ()  # killed before its row was written
    assert go_on() == ("case",)


def test_spacing(tmp_path):
    case = write_scans(tmp_path / "thick", scans(), geometry=make_geometry(SHAPE, spacing_mm=(5, 1, 1)))
    near = write_scans(tmp_path / "near", scans(), geometry=make_geometry(SHAPE, spacing_mm=(1.04, 1, 1)))
    refused = predict_cases([segmenter()], [case, near], out=tmp_path / "out")
    assert [p.case for p in refused.predictions] == ["near"]
    assert "5 x 1 x 1 mm" in str(refused.problems[0])
    assert "--resample" in str(refused.problems[0])
    (prediction,) = predict_cases(
        [segmenter()], [case], out=tmp_path / "out", options=PredictOptions(resample=True)
    ).predictions
    values, geometry = read_volume(prediction.path)
    assert (values.shape, geometry.spacing_mm) == (SHAPE, (5, 1, 1))
    assert values[~scans().any(axis=-1)].max() == 0
    assert len(np.unique(values)) == 4


def test_several_networks_and_mirrors(tmp_path):
    case = write_scans(tmp_path / "case", scans())
    plain = predict_cases([segmenter()], [case], out=tmp_path / "plain")
    same = predict_cases(
        [segmenter(), segmenter()],
        [case],
        out=tmp_path / "same",
        options=PredictOptions(mirroring="in_plane", save_probabilities=True),
    )
    assert np.array_equal(*(read_volume(r.predictions[0].path)[0] for r in (plain, same)))
    saved = nibabel.load(tmp_path / "same" / "probabilities" / "case.nii.gz")
    stack = np.asarray(saved.dataobj)
    assert stack.shape == (*SHAPE[::-1], 4)
    assert np.allclose(stack.sum(axis=-1), 1, atol=1e-6)
    outside = ~scans().any(axis=-1).transpose(2, 1, 0)
    assert (stack[outside] == [1, 0, 0, 0]).all()
    assert (tmp_path / "same" / "probabilities" / "classes.txt").read_text().split() == list(CLASSES)
    shifted = predict_cases(
        [segmenter(class_shift=(0.0, -np.inf, 0.0, 0.0))], [case], out=tmp_path / "shifted"
    )
    assert 1 not in read_volume(shifted.predictions[0].path)[0]
    # Each network is corrected by its own shift before the mean is taken.
    corrected = segmenter(class_shift=(0.0, -np.inf, 0.0, 0.0))
    predict_cases(
        [segmenter(), corrected],
        [case],
        out=tmp_path / "mixed",
        options=PredictOptions(save_probabilities=True),
    )
    mixed = np.asarray(nibabel.load(tmp_path / "mixed" / "probabilities" / "case.nii.gz").dataobj)
    assert np.allclose(mixed[..., 1], stack[..., 1] / 2, atol=1e-6)


def test_a_missing_modality_is_a_channel_of_0_where_that_is_allowed(tmp_path):
    whole = write_scans(tmp_path / "case", scans())
    lacking = replace(whole, modalities={k: v for k, v in whole.modalities.items() if k != "t1c"})
    (prediction,) = predict_cases(
        [segmenter()], [lacking], out=tmp_path / "out", options=PredictOptions(allow_missing=True)
    ).predictions
    assert prediction.warnings == ("lacks t1c",)
    z_scores = scans() - scans()[scans() > 0].mean()
    z_scores[..., 1] = 0
    brightest = np.where(scans().any(axis=-1), z_scores.argmax(axis=-1), 0)
    assert np.array_equal(read_volume(prediction.path)[0], np.array([0, 1, 2, 4])[brightest])
    nothing = replace(whole, modalities={})
    (problem,) = predict_cases(
        [segmenter()], [nothing], out=tmp_path / "out", options=PredictOptions(allow_missing=True)
    ).problems
    assert "lacks t1n, t1c, t2w, t2f" in str(problem)


def test_clean_up_is_by_mm3_on_the_grid_of_the_case(tmp_path):
    case = write_scans(tmp_path / "case", scans())
    cleanup = Settings(min_component_mm3=10000.0)
    (prediction,) = predict_cases(
        [segmenter()], [case], out=tmp_path / "out", options=PredictOptions(settings=cleanup)
    ).predictions
    assert not read_volume(prediction.path)[0].any()
    assert prediction.volumes_ml["whole"] == 0
    few = Settings(min_enhancing_mm3=10000.0)
    (prediction,) = predict_cases(
        [segmenter()], [case], out=tmp_path / "out", options=PredictOptions(settings=few)
    ).predictions
    assert np.array_equal(read_volume(prediction.path)[0], np.array([0, 1, 2, 1])[expected(scans())])


def test_one_case_into_a_named_file(tmp_path):
    case = write_scans(tmp_path / "case", scans(), schema="brats2023")
    for name in ("mine.nii.gz", "mine.nii", "mine.mha"):
        report = predict_one([segmenter()], case, out=tmp_path / "out" / name)
        assert report.exit_code == 0
        assert np.array_equal(read_volume(tmp_path / "out" / name)[0], expected(scans()))
    assert len(list((tmp_path / "out").iterdir())) == 3
    with pytest.raises(UsageError, match=r"mine\.png: its name must end in one of \.nii\.gz"):
        predict_one([segmenter()], case, out=tmp_path / "out" / "mine.png")


def test_what_does_not_fit_together_is_refused_first(tmp_path):
    with pytest.raises(UsageError, match="different classes cannot be averaged"):
        predict_cases([segmenter(), segmenter(classes=("healthy", "edema"))], [], out=tmp_path / "out")
    with pytest.raises(UsageError, match="at least one run"):
        predict_cases([], [], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert predict_cases([segmenter()], [], out=tmp_path / "out").exit_code == 1


@pytest.mark.parametrize("dtype", ["uint16", "float64", ">i2"])
def test_other_number_types_are_the_same_case(tmp_path, dtype):
    case = write_scans(tmp_path / "case", scans())
    for scan in case.modalities.values():
        image = nibabel.load(scan.path)
        header = nibabel.Nifti1Header(endianness=">") if dtype == ">i2" else nibabel.Nifti1Header()
        header.set_data_dtype(np.dtype(dtype))
        nibabel.Nifti1Image(np.asarray(image.dataobj).astype(dtype), image.affine, header).to_filename(
            scan.path
        )
    (prediction,) = predict_cases([segmenter()], [case], out=tmp_path / "out").predictions
    assert np.array_equal(read_volume(prediction.path)[0], np.array([0, 1, 2, 4])[expected(scans())])


def test_a_single_slice(tmp_path):
    volume = scans()[3:4]
    case = write_scans(tmp_path / "case", volume, geometry=make_geometry((1, *SHAPE[1:])))
    report = predict_cases([segmenter()], [case], out=tmp_path / "out")
    assert (report.exit_code, report.problems) == (0, ())
    brain = volume.any(axis=-1)
    z_scores = (volume - volume[brain].mean(axis=0)) / volume[brain].std(axis=0)
    brightest = np.where(brain, z_scores.argmax(axis=-1), 0)
    assert np.array_equal(read_volume(report.predictions[0].path)[0], np.array([0, 1, 2, 4])[brightest])


def test_scaled_data_is_the_same_case(tmp_path):
    case = write_scans(tmp_path / "case", scans())
    for scan in case.modalities.values():
        image = nibabel.load(scan.path)
        scaled = nibabel.Nifti1Image(np.asarray(image.dataobj), image.affine)
        scaled.header.set_slope_inter(0.5, 0.0)
        scaled.to_filename(scan.path)  # nibabel stores twice the value
        assert nibabel.load(scan.path).dataobj.slope == 0.5
    (prediction,) = predict_cases([segmenter()], [case], out=tmp_path / "out").predictions
    assert np.array_equal(read_volume(prediction.path)[0], np.array([0, 1, 2, 4])[expected(scans())])


@pytest.mark.parametrize("value", [0, 7])
def test_a_scan_that_is_the_same_all_over_is_refused_by_name(tmp_path, value):
    volume = scans()
    volume[..., 2] = value
    report = predict_cases([segmenter()], [write_scans(tmp_path / "flat", volume)], out=tmp_path / "out")
    assert (report.predictions, report.exit_code) == ((), 1)
    assert "flat" in str(report.problems[0])
    assert f"t2w is empty: every voxel is {value}" in str(report.problems[0])


def test_a_scan_without_voxels_is_refused_by_name(tmp_path):
    case = write_scans(tmp_path / "nothing", scans())
    header = nibabel.Nifti1Header()
    header["dim"][:4] = (3, 15, 18, 0)
    header["vox_offset"] = 352
    case.modalities["t1c"].path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    report = predict_cases([segmenter()], [case], out=tmp_path / "out")
    assert (report.predictions, report.exit_code) == ((), 1)
    assert "t1c.nii.gz" in str(report.problems[0])
    assert "has the shape" in str(report.problems[0])


@pytest.mark.parametrize("save", [False, True])
def test_slices_computed_apart_are_those_computed_together(tmp_path, save):
    cases = [write_scans(tmp_path / name, scans(i)) for i, name in enumerate(("a", "b", "c", "d"))]
    n_threads, maps = torch.get_num_threads(), []
    try:
        for n in (1, 3):
            torch.set_num_threads(n)
            report = predict_cases(
                [segmenter()], cases, out=tmp_path / str(n), options=PredictOptions(save_probabilities=save)
            )
            assert [p.case for p in report.predictions] == ["a", "b", "c", "d"]
            assert torch.get_num_threads() == n
            maps.append([read_volume(p.path)[0] for p in report.predictions])
    finally:
        torch.set_num_threads(n_threads)
    assert np.array_equal(*maps)


class Counting(nn.Module):
    """Counts its passes, which may take a while; with an error it fails in the first one."""

    def __init__(self, error: Exception | None = None, *, seconds: float = 0.0):
        super().__init__()
        self.error, self.seconds, self.n_passes, self.begun = error, seconds, 0, threading.Event()

    def forward(self, x):
        self.n_passes += 1
        self.begun.set()
        if self.error is not None and self.n_passes == 1:
            raise self.error
        time.sleep(self.seconds)
        return x


def test_what_ends_a_run_ends_the_cases_under_way(tmp_path, monkeypatch):
    """Ctrl-C must not wait for the cases that were begun, of twelve passes each, let alone for those that
    were not.
    """

    def interrupt(results, **_):
        yield next(results)
        raise KeyboardInterrupt

    def first_case_first(case):
        assert case.id == "0" or network.begun.wait(60)
        return load_case(case)

    tall = np.concatenate([scans()[2:8]] * 16)
    cases = [write_scans(tmp_path / "0", scans())]
    cases += [write_scans(tmp_path / str(i), tall, geometry=make_geometry(tall.shape[:3])) for i in (1, 2, 3)]
    network = Counting(seconds=0.3)
    with monkeypatch.context() as patched:
        patched.setattr(predicting, "track", interrupt)
        patched.setattr(intake, "load_case", first_case_first)
        with pytest.raises(KeyboardInterrupt) as kept:
            predict_cases([segmenter(network=network)], cases, out=tmp_path / "out")
    assert network.n_passes < 1 + 12
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("computing")], (
        kept.traceback
    )
    assert [p.name for p in (tmp_path / "out").glob("*.nii.gz")] == ["0.nii.gz"]
    assert (
        predict_cases([segmenter(network=network)], cases[:1], out=tmp_path / "out").exit_code == 0
    )  # the network still is as it was


def test_threads_begun_later_have_their_number(tmp_path):
    case, n_threads = write_scans(tmp_path / "case", scans()), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        with ThreadPoolExecutor(1) as pool:
            for network in (BrightestChannel(), Counting(ZeroDivisionError())):
                with suppress(ZeroDivisionError):
                    predict_cases([segmenter(network=network)], [case], out=tmp_path / "out")
                assert torch.get_num_threads() == pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(n_threads)


@pytest.mark.parametrize(("module", "stage"), [(intake, "load_case"), (predicting, "write_label_map")])
def test_memory_that_does_not_suffice_to_read_or_write_a_case_is_its_problem(
    tmp_path, monkeypatch, module, stage
):
    cases = [write_scans(tmp_path / name, scans()) for name in ("a", "b")]
    real = getattr(module, stage)

    def full_for_a(*args, **more):
        if "a" in (getattr(args[0], "id", ""), getattr(args[0], "name", "").partition(".")[0]):
            raise MemoryError
        return real(*args, **more)

    monkeypatch.setattr(module, stage, full_for_a)
    report = predict_cases([segmenter()], cases, out=tmp_path / "out")
    assert [p.case for p in report.predictions] == ["b"]
    assert "a: " in str(report.problems[0])
    assert "does not fit into memory" in str(report.problems[0])


def test_windows_are_no_way_out_of_full_memory_for_a_network_that_has_them(tmp_path):
    case = write_scans(tmp_path / "case", scans())
    said = []
    for window in (None, (16, 16)):
        network = Counting(torch.OutOfMemoryError("CUDA out of memory."))
        said.append(
            str(
                predict_cases(
                    [segmenter(network=network, window=window)], [case], out=tmp_path / "out"
                ).problems[0]
            )
        )
    assert ["--inference windowed" in line for line in said] == [True, False]


def test_brain_of_a_certain_network_is_no_air(tmp_path):
    """Calibration takes voxels of probability 1 for air; a healthy voxel of the brain is given a little
    less.
    """

    class Certain(nn.Module):
        def forward(self, x):
            return torch.stack([torch.full_like(x[:, 0], 40.0), *torch.zeros_like(x[:, 1:]).unbind(1)], dim=1)

    case = write_scans(tmp_path / "case", scans())
    predict_cases(
        [segmenter(network=Certain())],
        [case],
        out=tmp_path / "out",
        options=PredictOptions(save_probabilities=True),
    )
    healthy = np.asarray(nibabel.load(tmp_path / "out" / "probabilities" / "case.nii.gz").dataobj)[
        ..., 0
    ].transpose(2, 1, 0)
    assert np.array_equal(healthy < 1, scans().any(axis=-1))
    assert healthy.min() > 1 - 1e-6
