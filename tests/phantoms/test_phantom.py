"""The synthetic cohort: its shares, its signal, how hard it is, and that the reader knows every layout
of it.
"""

import functools
import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.ndimage import label as number_parts
from sklearn.linear_model import LogisticRegression

from brats_seg.core.errors import UsageError
from brats_seg.phantoms import cohort as phantom_cohort
from brats_seg.phantoms.brain import ellipsoid, grid_of, smooth_noise
from brats_seg.phantoms.cohort import (
    PHANTOM_VERSION,
    PhantomCase,
    make_case,
    make_traits,
    plan_lesions,
    write_cohort,
)
from brats_seg.phantoms.files import LAYOUTS
from brats_seg.phantoms.tumor import Lesion, Traits, lowest
from brats_seg.scans.labels import OUTSIDE, SCHEMAS, TISSUES, common_classes, from_tissue, to_tissue
from brats_seg.scans.layouts import find_cases
from brats_seg.scans.releases import LAYOUTS as READ_LAYOUTS
from brats_seg.scans.volume import read_volume

HEALTHY, NECROSIS, EDEMA, NON_ENHANCING, ENHANCING, CAVITY = range(6)
SMALL = 48


@pytest.fixture(scope="module")
def cohort() -> list[PhantomCase]:
    """The eight cases of size 96 that `write_cohort(seed=0)` writes."""
    lesions = plan_lesions(8, np.random.default_rng([0, 8]), traits=Traits())
    return [make_case(number, lesion=lesion) for number, lesion in enumerate(lesions, start=1)]


@pytest.fixture
def made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal cases of several layouts are made once: that a case is the same again has a test of its own."""
    monkeypatch.setattr(phantom_cohort, "make_case", MADE_ONCE)


MADE_ONCE = functools.cache(make_case)


@pytest.fixture(scope="module")
def voxels(cohort: list[PhantomCase]) -> tuple[np.ndarray, np.ndarray]:
    """Intensities (N, 4) of all brain voxels of the cohort, z-scored per case, and their tissue class."""
    scores, tissue = [], []
    for case in cohort:
        brain = case.tissue != OUTSIDE
        values = case.modalities[brain].astype(np.float32)
        scores.append((values - values.mean(axis=0)) / values.std(axis=0))
        tissue.append(case.tissue[brain])
    return np.concatenate(scores), np.concatenate(tissue)


def best_dice(score: np.ndarray, truth: np.ndarray) -> float:
    """The highest Dice that a threshold on the score can reach, chosen with the truth at hand."""
    hits = np.cumsum(truth[np.argsort(-score)])
    return float((2 * hits / (np.arange(1, len(score) + 1) + truth.sum())).max())


def shares(case: PhantomCase) -> np.ndarray:
    return np.bincount(case.tissue[case.tissue != OUTSIDE], minlength=6) / (case.tissue != OUTSIDE).sum()


def test_a_case_has_the_proportions_of_brats_and_no_signal_outside_the_brain(cohort):
    for case in cohort:
        brain = case.tissue != OUTSIDE
        assert case.modalities.shape == (62, 96, 96, 4)
        assert (case.modalities[~brain] == 0).all()
        assert (case.modalities[brain] > 0).all()
        assert 0.2 < brain.mean() < 0.4
        assert not brain[:, [0, -1]].any()
        assert not brain[:, :, [0, -1]].any()


def test_the_cohort_has_the_shares_of_real_cases(cohort):
    mean = np.mean([shares(case) for case in cohort], axis=0)
    expected = {HEALTHY: 0.982, EDEMA: 0.011, ENHANCING: 0.0038, NECROSIS: 0.0018, NON_ENHANCING: 0.0012}
    for tissue, share in expected.items():
        assert mean[tissue] == pytest.approx(share, rel=0.2), TISSUES[tissue]
    whole = [1 - shares(case)[HEALTHY] for case in cohort]
    assert max(whole) > 2 * min(whole)


def test_some_cases_have_no_enhancing_tumor_and_then_no_necrosis(cohort):
    without = [case for case in cohort if not (case.tissue == ENHANCING).any()]
    assert len(without) == 1
    assert not (without[0].tissue == NECROSIS).any()
    assert (without[0].tissue == NON_ENHANCING).any()


@pytest.mark.parametrize(("n_cases", "n_without"), [(4, 1), (8, 1), (12, 2), (24, 4)])
def test_one_case_in_six_is_planned_without_enhancing_tumor_and_the_mean_volume_is_kept(n_cases, n_without):
    lesions = plan_lesions(n_cases, np.random.default_rng(3), traits=Traits(lesion_sd=0.6))
    assert sum(not lesion.enhancing for lesion in lesions) == n_without
    assert np.mean([lesion.scale for lesion in lesions]) == pytest.approx(1)


def test_signal_of_healthy_tissue_is_ordered_as_in_each_modality():
    case = make_case(5, traits=Traits(noise=0.0, bias=0.0, bright_spots=0.0, vessels=0.0))
    healthy = case.tissue == HEALTHY
    t1n, t1c, t2w, t2f = (case.modalities[..., m].astype(float) for m in range(4))
    dark, bright = np.percentile(t1n[healthy], (2, 70))
    csf, white = healthy & (t1n <= dark), healthy & (t1n >= bright)
    gray = healthy & (t2f >= np.percentile(t2f[healthy], 90))
    assert csf.any()
    for image in (t1n, t1c):
        assert np.median(image[white]) > np.median(image[gray]) > np.median(image[csf])
    assert np.median(t2w[csf]) > np.median(t2w[gray]) > np.median(t2w[white])
    assert np.median(t2f[gray]) > np.median(t2f[white]) > np.median(t2f[csf])


def test_edema_is_bright_on_flair_and_enhancing_tumor_on_contrast(voxels):
    scores, tissue = voxels
    mean = {k: scores[tissue == k].mean(axis=0) for k in range(5)}
    assert mean[EDEMA][3] > 1.5
    assert mean[ENHANCING][1] > 2
    assert mean[NECROSIS][1] < 0 < mean[NECROSIS][2]


def test_a_rim_of_enhancing_tumor_lies_around_the_necrosis(cohort):
    """From the middle of the necrosis, a walk to the left and to the right meets the rim before healthy
    tissue.
    """
    case = cohort[0]
    z, y, x = np.round(np.argwhere(case.tissue == NECROSIS).mean(axis=0)).astype(int)
    for step in (-1, 1):
        met = [int(k) for k in case.tissue[z, y, x::step]]
        assert set(met[: met.index(HEALTHY)]) & {ENHANCING, NON_ENHANCING}


def test_no_threshold_on_one_modality_finds_the_tumor(voxels):
    scores, tissue = voxels
    for m in range(4):
        for sign in (1, -1):
            assert best_dice(sign * scores[:, m], tissue > HEALTHY) < 0.55


@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_no_linear_rule_on_the_four_intensities_finds_the_tumor(voxels, class_weight):
    scores, tissue = voxels
    model = LogisticRegression(class_weight=class_weight, max_iter=300).fit(scores, tissue > HEALTHY)
    assert best_dice(model.decision_function(scores), tissue > HEALTHY) < 0.70


@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(48, 64),
    scale=st.floats(0.3, 2.5),
    enhancing=st.booleans(),
    cavity=st.booleans(),
)
def test_any_case_is_whole_and_the_same_again(seed, size, scale, enhancing, cavity):
    lesion = Lesion(scale, enhancing, cavity)
    case, again = (make_case(seed, size=size, lesion=lesion) for _ in range(2))
    assert np.array_equal(case.modalities, again.modalities)
    assert np.array_equal(case.tissue, again.tissue)
    brain = case.tissue != OUTSIDE
    assert np.array_equal(brain, (case.modalities > 0).all(axis=-1))
    assert np.array_equal(brain, (case.modalities > 0).any(axis=-1))
    assert (case.tissue == EDEMA).sum() == round(0.011 * scale * brain.sum())
    assert (case.tissue == ENHANCING).any() == enhancing
    assert (case.tissue == CAVITY).any() == cavity


def test_traits_change_the_tumor_and_leave_the_brain():
    lesion = Lesion(1.0, True, False)
    plain = make_case(7, size=SMALL, lesion=lesion)
    bigger = make_case(7, size=SMALL, lesion=lesion, traits=Traits(edema=0.022))
    fainter = make_case(7, size=SMALL, lesion=lesion, traits=Traits(contrast=0.3))
    assert np.array_equal(plain.tissue == OUTSIDE, bigger.tissue == OUTSIDE)
    assert (bigger.tissue == EDEMA).sum() == pytest.approx(2 * (plain.tissue == EDEMA).sum(), abs=1)
    assert np.array_equal(plain.tissue, fainter.tissue)
    tumor = plain.tissue == EDEMA
    assert fainter.modalities[tumor][:, 3].mean() < plain.modalities[tumor][:, 3].mean()


def test_noise_has_mean_zero_and_variance_one():
    noise = np.stack(
        [smooth_noise(np.random.default_rng(seed), (20, 30, 40), scale_vox=3.0) for seed in range(20)]
    )
    assert noise.mean() == pytest.approx(0, abs=0.05)
    assert noise.var() == pytest.approx(1, abs=0.1)


def test_the_distance_to_a_ball_is_exact():
    grid = grid_of(SMALL)
    radius = np.sqrt(grid.x**2 + grid.y**2 + grid.z**2)
    assert ellipsoid(grid, (0.0, 0.0, 0.0), (0.5, 0.5, 0.5)) == pytest.approx(radius - 0.5, abs=1e-4)


def test_lowest_takes_the_lowest_and_nothing_infinite():
    field = np.array([[[3.0, 1.0, np.inf, 2.0]]], np.float32)
    assert lowest(field, 2).tolist() == [[[False, True, False, True]]]
    assert lowest(field, 4).sum() == 3
    assert lowest(field, 0).sum() == 0


@pytest.mark.usefixtures("made_once")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reader_knows_every_layout(tmp_path: Path, layout: str):
    paths = write_cohort(tmp_path, n_cases=2, layout=layout, size=SMALL, seed=4)
    found = find_cases(tmp_path)
    assert not found.problems
    assert [case.layout for case in found.cases] == [layout, layout]
    assert len({case.patient for case in found.cases}) == 2
    assert all(path.exists() for path in paths)
    has_cavities = "resection_cavity" in LAYOUTS[layout].tissues
    traits = Traits(cavities=0.4 if has_cavities else 0.0, tumors=5.0 if LAYOUTS[layout].many else 1.0)
    lesions = plan_lesions(2, np.random.default_rng([4, 2]), traits=traits)
    expected = {
        n: MADE_ONCE(400_000 + n, size=SMALL, lesion=lesion, traits=traits)
        for n, lesion in enumerate(lesions, start=1)
    }
    for case in found.cases:
        number = int(re.search(r"00([1-9])", case.id)[1])
        assert case.schema == LAYOUTS[layout].schema
        assert tuple(case.modalities) == READ_LAYOUTS[layout].modalities
        for m, name in enumerate(("t1n", "t1c", "t2w", "t2f")):
            if name not in case.modalities:
                continue
            volume, geometry = read_volume(case.modalities[name])
            assert np.array_equal(volume, expected[number].modalities[..., m]), name
            assert geometry.spacing_mm == (1.0, 1.0, 1.0)
        schema = SCHEMAS[case.schema]
        classes = common_classes([schema])
        label = to_tissue(read_volume(case.label)[0], schema, classes)
        values = from_tissue(expected[number].tissue, schema, LAYOUTS[layout].drawn)
        assert np.array_equal(label, to_tissue(values, schema, classes))


def test_metastases_are_several_tumors_with_the_volume_of_one():
    one, many = (make_case(3, size=96, traits=Traits(tumors=n)).tissue for n in (1.0, 5.0))
    tumors = [number_parts((tissue > 0) & (tissue < 6), np.ones((3, 3, 3)))[1] for tissue in (one, many)]
    assert tumors[0] == 1
    assert 2 <= tumors[1] <= 5
    n_one, n_many = (np.count_nonzero((tissue > 0) & (tissue < 6)) for tissue in (one, many))
    assert 0.6 < n_many / n_one < 1.05
    with pytest.raises(UsageError, match="tumors 0: a case has 1 tumor or more"):
        Traits(tumors=0.0)


def test_five_tissue_values_in_2013_and_a_cavity_in_2024(tmp_path: Path):
    write_cohort(tmp_path / "a", n_cases=4, layout="brats2013", size=SMALL)
    write_cohort(tmp_path / "b", n_cases=4, layout="brats2024gli", size=SMALL)
    values = {folder: set() for folder in "ab"}
    for folder, seen in values.items():
        for case in find_cases(tmp_path / folder).cases:
            seen |= set(np.unique(read_volume(case.label)[0]).tolist())
    assert values == {"a": {0, 1, 2, 3, 4}, "b": {0, 1, 2, 3, 4}}
    assert {path.name for path in (tmp_path / "a").glob("[!.]*")} == {"HG", "LG"}


def test_phantoms_write_over_phantoms_alone(tmp_path: Path):
    for _ in range(2):
        write_cohort(tmp_path / "own", n_cases=1, size=SMALL)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(
        UsageError, match=r"other: holds other files \(notes.txt\); give an empty or new folder"
    ):
        write_cohort(tmp_path / "other", n_cases=1, size=SMALL)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["notes.txt"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    def digests(folder: str, seed: int) -> dict[str, str]:
        write_cohort(tmp_path / folder, n_cases=1, size=SMALL, seed=seed)
        return {
            p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in (tmp_path / folder).rglob("*.nii.gz")
        }

    first, again, other = digests("a", 1), digests("b", 1), digests("c", 2)
    assert len(first) == 5
    assert first == again
    assert all(first[name] != other[name] for name in first)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"layout": "brats1999"}, "--layout brats1999.*brats2013.*manifest"),
        ({"n_cases": 0}, "--cases 0"),
        ({"size": 20}, "--size 20.*48"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_written(tmp_path: Path, settings_: dict, message: str):
    with pytest.raises(UsageError, match=message):
        write_cohort(tmp_path / "out", **settings_)
    assert not (tmp_path / "out").exists()


def test_a_case_of_this_version_is_what_it_was_when_the_version_was_frozen():
    case = make_case(100_001, size=64)
    assert PHANTOM_VERSION == 1, (
        "write the new figures here, and say in the docs that scores on phantoms are of another version"
    )
    counts = np.bincount(case.tissue.ravel(), minlength=256)
    assert counts[[0, 1, 2, 3, 4, 5, 255]] == pytest.approx([42842, 118, 601, 46, 249, 0, 124080], abs=3)
    means = [case.modalities[inside].mean(axis=0) for inside in (case.tissue != OUTSIDE, case.tissue == 4)]
    assert means[0] == pytest.approx([350.8, 491.9, 211.1, 285.5], abs=0.2)
    assert means[1] == pytest.approx([310.5, 968.5, 244.0, 396.7], abs=2)


def test_traits_are_set_by_name():
    assert make_traits({"contrast": 0.5}) == Traits(contrast=0.5)
    with pytest.raises(UsageError, match=r"no trait 'size'; the traits are edema, enhancing"):
        make_traits({"size": 1.0})


def test_impossible_traits_are_refused():
    with pytest.raises(
        UsageError, match=r"^traits: the tumor shares sum to 0\.2068; they must sum to less than 0\.1$"
    ):
        Traits(edema=0.2)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5])
@pytest.mark.parametrize("trait", ["edema", "contrast", "noise"])
def test_a_trait_is_finite_and_0_or_more(trait, value):
    with pytest.raises(
        UsageError, match=rf"^traits: {trait} {value:g}: every trait is finite and 0 or more$"
    ):
        make_traits({trait: value})
