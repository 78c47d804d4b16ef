"""Facts about the remedies: their names, their knobs, the images they make."""

from pathlib import Path

import numpy as np
import pytest
from imblearn.over_sampling import KMeansSMOTE

from brats_seg.classification.methods import (
    METHODS,
    cascade_goals,
    kept_by_cascade,
    remedies,
    remedy,
    synthesize,
)
from brats_seg.classification.settings import Knobs, StudySettings
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.settings import parse_settings
from brats_seg.imbalance.samplers import SAMPLERS
from brats_seg.models.losses import LOSSES
from brats_seg.studies.strategies import ExperimentConfig, make_strategies
from brats_seg.training.remedies import load_recipe


@pytest.mark.parametrize("name", METHODS)
def test_every_remedy_is_made_of_parts_that_exist(name: str):
    recipe = load_recipe(name)
    assert recipe.sampler.kind in SAMPLERS
    assert recipe.loss.kind in LOSSES


def test_a_new_remedy_is_one_file_and_runs_in_both_wings(tmp_path: Path):
    path = tmp_path / "sharp.yaml"
    path.write_text("sampler: {kind: oversample}\nloss: {kind: logit_adjusted, tau: 0.5}\n")
    on_images = remedy("sharp", Knobs(kind=str(path))).config(StudySettings(), lr=0.01, seed=0)
    experiment = ExperimentConfig(strategies={"sharp": {"remedy": str(path)}})
    (on_scans,) = make_strategies(experiment)[0].configs
    for config in (on_images, on_scans):
        assert (config.sampler.kind, config.loss.kind, config.loss.tau) == (
            "oversample",
            "logit_adjusted",
            0.5,
        )


def test_a_remedy_of_images_alone_is_refused_for_scans():
    with pytest.raises(
        UsageError, match="strategy 'smote': remedy 'smote': its synthesizer is only for images"
    ):
        make_strategies(ExperimentConfig(strategies={"smote": {"remedy": "smote"}}))


def test_a_reduced_ratio_each_is_a_remedy_each():
    found = remedies({"oversample": Knobs(imbalance_ratio=(1, 10, 100)), "baseline": Knobs()})
    assert [one.name for one in found] == ["oversample"] * 3 + ["baseline"]
    assert [one.imbalance_ratio for one in found] == [1, 10, 100, 1]


def test_a_second_phase_and_a_committee_are_more_networks():
    found = remedies({"oversample": Knobs(two_phase=True), "easy_ensemble": Knobs(networks=4)})
    assert [one.n_networks for one in found] == [2, 4]


@pytest.mark.parametrize(
    ("name", "knobs", "complaint"),
    [
        ("upsample", Knobs(), "'upsample' is not a method"),
        ("baseline", Knobs(imbalance_ratio=(10,)), "does not use it"),
        ("oversample", Knobs(redraw="epoch"), "only 'undersample'"),
        ("easy_ensemble", Knobs(two_phase=True), "several networks"),
    ],
)
def test_knobs_that_do_not_fit_are_named(name: str, knobs: Knobs, complaint: str):
    with pytest.raises(UsageError, match=complaint):
        remedies({name: knobs})


def test_a_cascade_falls_by_one_factor_a_round_to_the_rarest():
    counts = np.array([1000, 100, 10])
    assert cascade_goals(counts, round_=1, rounds=3).tolist() == [100, 32, 10]
    assert cascade_goals(counts, round_=2, rounds=3).tolist() == [10, 10, 10]


def test_a_cascade_keeps_what_is_known_least():
    own = np.array([0.9, 0.2, 0.5, 0.1, 0.8], np.float32)
    assert kept_by_cascade(own, np.array([0, 0, 0, 1, 1]), goal=np.array([2, 1])).tolist() == [1, 2, 3]


def rare_and_common() -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1], [60, 8])
    return (generator.normal(size=(68, 5)) + 3 * labels[:, None]).astype(np.float32), labels


def test_smote_levels_the_classes_and_keeps_the_real_images():
    images, labels = rare_and_common()
    made, of = synthesize("SMOTE", images, labels, neighbors=5, seed=0)
    assert np.bincount(of).tolist() == [60, 60]
    assert (made[:68] == images).all()
    rare = images[labels == 1]
    assert (made[68:] >= rare.min(0) - 1e-6).all()  # between two rare images
    assert (made[68:] <= rare.max(0) + 1e-6).all()


def test_kmeans_smote_levels_classes_that_are_rare_in_every_cluster():
    """Its own threshold finds no cluster here, as on digits with a rho of 50."""
    generator = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2, 3], [300, 300, 6, 6])
    images = (generator.normal(size=(612, 5)) + 2 * labels[:, None] % 4).astype(np.float32)
    with pytest.raises(RuntimeError, match="No clusters found"):
        KMeansSMOTE(k_neighbors=5, random_state=0).fit_resample(images, labels)
    _, of = synthesize("KMeansSMOTE", images, labels, neighbors=5, seed=0)
    assert (np.bincount(of) >= 300).all()


def test_cleaning_samplers_take_away_from_the_common_class_alone():
    images, labels = rare_and_common()
    for kind in ("OneSidedSelection", "EditedNearestNeighbours"):
        _, of = synthesize(kind, images, labels, neighbors=3, seed=0)
        assert (of == 1).sum() == 8
        assert (of == 0).sum() <= 60


def test_one_image_has_no_neighbor():
    with pytest.raises(InputError, match="no neighbor"):
        synthesize("SMOTE", np.zeros((5, 2), np.float32), np.array([0, 0, 0, 0, 1]), neighbors=5, seed=0)


def test_without_imbalanced_learn_its_extra_is_named(monkeypatch: pytest.MonkeyPatch):
    def absent(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr("brats_seg.classification.methods.import_module", absent)
    with pytest.raises(UsageError, match=r"brats-seg\[imbalanced\]"):
        synthesize("SMOTE", np.zeros((2, 2), np.float32), np.array([0, 1]), neighbors=5, seed=0)


@pytest.mark.parametrize(
    ("tree", "complaint"),
    [
        ({"distributions": [{"kind": "step", "rho": [10]}]}, "mu"),
        ({"distributions": [{"kind": "given"}]}, "counts"),
        ({"distributions": [{"kind": "balanced", "methods": ["smote"]}]}, "no method 'smote'"),
        ({"decisions": {"tuned": ["accuracy"]}}, "validation.images"),
        ({"validation": {"patience": 3}}, "need a score"),
        ({"validation": {"images": "held_out"}}, "held_out"),
    ],
)
def test_settings_that_do_not_fit_are_named(tree: dict[str, object], complaint: str):
    with pytest.raises(UsageError, match=complaint):
        parse_settings(StudySettings, tree)
