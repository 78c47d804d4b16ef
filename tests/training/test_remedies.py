"""The remedies: by hand-worked numbers, and each of them trained, saved, loaded and used in each wing."""

import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bank import KNOBS, run, write_bank
from torch import nn
from torch.nn.functional import cross_entropy, log_softmax

from brats_seg.bank.bank import PatchBank
from brats_seg.classification.bench import open_bench, open_images
from brats_seg.classification.boosting import (
    boosting_round,
    cheapest_labels,
    decontaminated,
    drawn_by_weight,
    grow_hard,
)
from brats_seg.classification.fitting import build_network, probabilities
from brats_seg.classification.settings import StudySettings
from brats_seg.core import sections as knobs
from brats_seg.core.config import Config, parse_config
from brats_seg.core.errors import UsageError
from brats_seg.core.files import LAST
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Mix
from brats_seg.core.settings import load_settings, parse_settings
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.ledger import Ledger
from brats_seg.imbalance.priors import class_weights
from brats_seg.imbalance.sampler import Draw
from brats_seg.imbalance.shares import drifted_shares, requested_shares
from brats_seg.models.checkpoint import load_checkpoint
from brats_seg.models.losses import make_loss
from brats_seg.models.networks import make_network
from brats_seg.models.output_rows import Directions, linear_output, normalize_rows, rows_of
from brats_seg.studies.grid import GridWorkers
from brats_seg.studies.image_cells import Cell
from brats_seg.studies.strategies import ExperimentConfig, make_strategies
from brats_seg.studies.study import run_study, study_jobs
from brats_seg.training.augment import Mixer
from brats_seg.training.phases import Method
from brats_seg.training.remedies import IMAGE_CODE, load_recipe, remedy_names
from brats_seg.training.split import Split
from brats_seg.training.steps import Examples, alone

CPU = Runtime(torch.device("cpu"), n_threads=1)
LOGITS = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
CLASSES = torch.tensor([0, 0, 0, 1, 1, 2], dtype=torch.uint8)


# Losses, by hand


def test_balanced_softmax_is_logit_adjustment_at_tau_1() -> None:
    """Ren et al. 2020: the probability of a class is n_c exp(logit_c) over the sum of all of these."""
    counts = torch.tensor([500.0, 40.0, 5.0])
    weighted = counts * LOGITS.exp()
    balanced_softmax = -(weighted / weighted.sum(1, keepdim=True)).log()[range(6), CLASSES.long()]
    loss = make_loss(load_recipe("balanced_softmax").loss, outside="none", prior=(counts / 545).tolist())
    torch.testing.assert_close(loss(LOGITS, CLASSES), balanced_softmax)


def test_ldam_lowers_the_true_logit_by_a_margin_of_the_inverse_fourth_root() -> None:
    """1 example to 16: the margin of the common class is half of that of the rare one, 4."""
    logits = torch.tensor([[3.0, 0.0], [0.0, 3.0]])
    loss = make_loss("ldam", outside="none", prior=(16 / 17, 1 / 17))
    found = loss(logits, torch.tensor([0, 1], dtype=torch.uint8))
    # Logits 3 - 2 and 0: log(1 + e^-1). Logits 0 and 3 - 4: log(1 + e^1).
    torch.testing.assert_close(found, torch.tensor([0.3132617, 1.3132617]))


def test_top_k_is_the_mean_loss_of_the_hardest_half() -> None:
    logits = torch.tensor([[0.0, 0.0], [5.0, 0.0], [0.0, 2.0], [9.0, 0.0]])
    loss = make_loss(knobs.Loss(kind="top_k", top_share=0.5), outside="none")
    classes = torch.zeros(4, dtype=torch.uint8)
    found = loss(logits, classes)
    hardest = cross_entropy(logits, classes.long(), reduction="none")[[0, 2]]
    assert found[[1, 3]].tolist() == [0, 0]
    torch.testing.assert_close(found.mean(), hardest.mean())


def test_top_k_of_voxels_leaves_out_what_does_not_count() -> None:
    """Four voxels, of which the hardest, outside the brain, does not count: the next hardest is left."""
    logits = torch.tensor([[[0.0, 1.0, 5.0, 6.0], [0.0, 0.0, 0.0, 0.0]]])
    targets = torch.tensor([[0, 1, 0, 255]], dtype=torch.uint8)
    loss = make_loss(knobs.Loss(kind="top_k", top_share=0.25), outside="ignore")
    torch.testing.assert_close(loss(logits, targets), torch.log1p(torch.tensor([1.0]).exp()))


def test_top_k_of_patches_is_the_mean_over_the_voxels_that_are_kept() -> None:
    """Two patches, of which 1 and 3 voxels count. All are kept, and each has the loss log 2."""
    targets = torch.tensor([[0, 255, 255], [0, 1, 1]], dtype=torch.uint8)
    found = make_loss(knobs.Loss(kind="top_k", top_share=1.0), outside="ignore")(
        torch.zeros(2, 2, 3), targets
    )
    torch.testing.assert_close(found.mean(), torch.tensor(2.0).log())
    assert found[1] == 3 * found[0]


def test_label_aware_smoothing_takes_most_of_the_label_of_the_largest_class() -> None:
    """Shares 0.7, 0.2, 0.1: e is 0.3, 0.3 sin(pi / 12) and 0."""
    e = (0.3, 0.3 * np.sin(np.pi / 12), 0.0)
    logs = log_softmax(LOGITS, 1)
    by_hand = [
        -(1 - e[k]) * logs[i, k] - e[k] / 2 * (logs[i].sum() - logs[i, k])
        for i, k in enumerate(CLASSES.tolist())
    ]
    loss = make_loss("label_aware", outside="none", prior=(0.7, 0.2, 0.1))
    torch.testing.assert_close(loss(LOGITS, CLASSES), torch.stack(by_hand))


def test_the_tversky_remedy_is_one_minus_the_mean_tversky_index() -> None:
    """Two voxels of each class, sure answers: a tumor voxel is missed. Tumor: 1 / (1 + 0.7); healthy, with
    one false alarm: 2 / (2 + 0.3).
    """
    said = torch.tensor([[[60.0, 60.0, 60.0, 0.0], [0.0, 0.0, 0.0, 60.0]]])
    truth = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
    tversky = make_loss(load_recipe("tversky").loss)(said, truth)
    torch.testing.assert_close(tversky, torch.tensor([1 - (1 / 1.7 + 2 / 2.3) / 2]), atol=1e-4, rtol=0)
    focal = make_loss(load_recipe("focal_tversky").loss)(said, truth)
    by_hand = ((1 - 2 / 2.3) + (1 - 1 / 1.7) ** 0.75) / 2
    torch.testing.assert_close(focal, torch.tensor([by_hand]), atol=1e-4, rtol=0)


def test_costs_in_the_learning_rate_leave_the_rarest_class_the_whole_rate() -> None:
    assert class_weights("cost", np.array([1000, 100, 10, 0])).tolist() == [0.01, 0.1, 1, 0]


# Shares, by hand


def test_square_root_sampling_of_900_100_and_25() -> None:
    counts, names = np.array([900, 100, 25]), ("a", "b", "c")
    shares = requested_shares("balanced", names, counts=counts, power=0.5)
    assert shares.tolist() == pytest.approx([30 / 45, 10 / 45, 5 / 45])


def test_progressively_balanced_shares_go_from_the_natural_ones_to_equal_ones() -> None:
    counts, equal = np.array([90, 10]), np.array([0.5, 0.5])
    found = [
        drifted_shares(equal, counts=counts, epoch=epoch, n_epochs=3, drift="from_natural").tolist()
        for epoch in (1, 2, 3, 9)
    ]
    assert found == [pytest.approx(want) for want in ([0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.5, 0.5])]


def test_images_are_drawn_with_shares_that_drift_over_the_run() -> None:
    """Of 1,000 and 100 images in 400 steps of 22: 2 rare ones in a batch at the beginning, 11 at the end."""
    index = ClassIndex.from_labels(np.repeat([0, 1], [1000, 100]), ("common", "rare"))
    config = parse_config(
        {
            "sampler": {"kind": "balanced", "drift": "from_natural"},
            "training": {"epochs": 400, "steps": 1, "batch_size": 22},
        }
    )
    method = Method(config=config, index=index, runtime=CPU, targets="images")
    sampler = method.make_sampler(method.first())
    rare = [int(sampler.next().classes.sum()) for _ in range(400)]
    assert (rare[:4], rare[-4:]) == ([2] * 4, [11] * 4)
    assert sum(rare) == pytest.approx(400 * 6.5, abs=10)


# Mixed examples


def mixer(**settings: Any) -> Mixer:
    return Mixer(parse_settings(Mix, settings), counts=np.array([300, 100, 99]), seed=0, rank=0)


def test_remix_gives_the_whole_label_to_a_class_that_is_three_times_rarer() -> None:
    first, second = np.array([0, 0, 1, 2]), np.array([1, 0, 2, 0])
    remix = mixer(kind="remix")
    # 0.4 of the first image, 0.6 of the second: the first label where it is rarer would need 0.6 < 0.5.
    assert remix.label_shares(0.4, first, second).tolist() == pytest.approx([0, 0.4, 0.4, 0.4])
    assert remix.label_shares(0.6, first, second).tolist() == pytest.approx([0.6, 0.6, 0.6, 1])
    assert mixer(kind="mixup").label_shares(0.4, first, second).tolist() == pytest.approx([0.4] * 4)


def test_mixup_mixes_inputs_and_labels_in_the_same_shares() -> None:
    """Inputs that are one-hot labels: the mixed input is the mixed label."""
    classes = np.array([0, 1, 2, 2])
    inputs = torch.eye(3)[classes]
    draw = Draw(np.arange(4), classes, np.zeros(4, bool), np.arange(4))
    targets = torch.from_numpy(classes.astype(np.uint8))
    second = mixer(kind="mixup")(Examples(inputs, targets, None), draw, number=5)
    share = second.share[:, None]
    torch.testing.assert_close(
        inputs, share * torch.eye(3)[classes] + (1 - share) * torch.eye(3)[second.targets.long()]
    )
    assert sorted(second.targets.tolist()) == [0, 1, 2, 2]


# Output layers


def test_tau_normalization_divides_by_the_length_to_a_power() -> None:
    layer = nn.Linear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 1.0]]))
    normalize_rows(layer, power=0.5)
    torch.testing.assert_close(
        layer.weight, torch.tensor([[3.0, 4.0], [0.0, 1.0]]) / torch.tensor([[5**0.5], [1.0]])
    )
    assert layer.bias.tolist() == [0, 0]


def test_only_the_length_of_output_weights_is_learned() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 4.0]]))
    directions = Directions(layer)
    with torch.no_grad():
        layer.weight += torch.tensor([[5.0, 0.0]])  # of which 3 lie along (0.6, 0.8)
    directions.keep()
    torch.testing.assert_close(rows_of(layer), torch.tensor([[4.8, 6.4]]))


def test_an_output_layer_of_several_maps_is_refused() -> None:
    with pytest.raises(UsageError, match="is not one linear map"):
        linear_output(nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)))


# Committees and labels


def test_a_round_of_boosting() -> None:
    """Own probabilities 0.9 and 0.6 of two classes: the loss is (0.1 + 0.4) / 2 = 1 / 4, so that a = 1 / 3;
    the weights fall by a^0.9 and a^0.6.
    """
    known = np.array([[0.9, 0.1], [0.4, 0.6]])
    weights, vote = boosting_round(known, np.array([0, 1]), np.array([0.5, 0.5]))
    fallen = np.array([(1 / 3) ** 0.9, (1 / 3) ** 0.6])
    assert weights.tolist() == pytest.approx((fallen / fallen.sum()).tolist())
    assert vote == pytest.approx(np.log(3))


def test_images_with_all_the_weight_are_drawn() -> None:
    labels, weights = np.array([0, 0, 0, 1, 1]), np.array([0.0, 0.5, 0.5, 0.0, 1.0])
    drawn = drawn_by_weight(labels, weights, goal=np.array([2, 1]), seed=0)
    assert sorted(drawn.tolist()) == [1, 2, 4]


def test_hard_images_grow_into_new_ones_of_their_class() -> None:
    """Of 0, 1, 2, 3 and 10 the hard images are 3 and 10. The goal is 4 + 1 images of each class: one new
    image between 3 and a number from 0 to 3, and four copies of 10, which share its weight.
    """
    images = np.array([[0], [1], [2], [3], [10]], np.float32)
    labels, weights = np.array([0, 0, 0, 0, 1]), np.array([0.1, 0.1, 0.1, 0.4, 0.3])
    made, of, shares = grow_hard(images, labels, weights, n_hard=2, seed=0)
    assert of.tolist() == [0, 0, 0, 0, 1, 0, 1, 1, 1, 1]
    assert made[:5].tolist() == images.tolist()
    assert 1.5 <= made[5, 0] <= 3
    assert made[6:].ravel().tolist() == [10] * 4
    assert shares.tolist() == pytest.approx([*weights, 0.4, *[0.3 / 4] * 4])


def test_without_a_hard_image_nothing_is_made() -> None:
    images, labels, weights = np.zeros((3, 2), np.float32), np.array([0, 0, 1]), np.full(3, 1 / 3)
    made, of, shares = grow_hard(images, labels, weights, n_hard=0, seed=0)
    assert (len(made), of.tolist(), shares.tolist()) == (3, [0, 0, 1], weights.tolist())


def test_metacost_says_the_class_whose_probability_is_large_for_its_frequency() -> None:
    """Of 90 and 10 images: 0.2 / 10 is more than 0.8 / 90, and 0.95 / 90 is more than 0.05 / 10."""
    known = np.array([[0.8, 0.2], [0.95, 0.05]])
    assert cheapest_labels(known, counts=np.array([90, 10])).tolist() == [1, 0]


def test_generalized_editing_gives_a_common_image_the_class_of_its_neighbors() -> None:
    places = np.array([[0.0], [0.1], [0.2], [9.9], [10.0], [10.1], [10.2]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1])  # the image at 9.9 lies among those of class 1
    kept, edited = decontaminated(places, labels, neighbors=2)
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert edited.tolist() == [0, 0, 0, 1, 1, 1, 1]


# Each of them in each wing it is for

ONLY_SCANS = ("focal_tversky", "tversky", "unified_focal")
ONLY_IMAGES = tuple(name for name in remedy_names() if set(IMAGE_CODE) & load_recipe(name).model_fields_set)
ONE_MAP = {"network": {"name": "dynunet", "channels": (8, 16, 16), "num_res_units": 0, "norm": "instance"}}
"""A network whose output layer is one linear map."""


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank(tmp_path_factory.mktemp("remedies") / "bank")


def on_scans(name: str, **more: Any) -> Config:
    every = {
        **{section: values for section, values in KNOBS.items() if section not in ("sampler", "hard")},
        "training": KNOBS["training"] | {"epochs": 1, "steps": 2, "batch_size": 4},
        "validation": {"metric": "last"},
        **(ONE_MAP if name in ("lws", "tau_normalized") else {}),
        **more,
    }
    config = parse_settings(ExperimentConfig, {"every": every, "strategies": {name: {"remedy": name}}})
    return make_strategies(config)[0].configs[0]


@pytest.mark.parametrize("name", [name for name in remedy_names() if name not in ONLY_IMAGES])
def test_on_scans_a_remedy_trains_saves_loads_and_predicts(name: str, bank: Path, tmp_path: Path) -> None:
    config = on_scans(name)
    result = run(tmp_path, bank, config, split=Split(train=("A",), inner=(), held_out=("E",), fold=0))
    assert result.ended == "done"
    trained = load_checkpoint(tmp_path / LAST)
    network = make_network(config.network, n_channels=4, n_classes=5, n_dims=2).eval()
    network.load_state_dict(trained.weights)
    patches = PatchBank(bank, patch_size=(16, 16)).batch(np.array([0, 1]))
    with torch.no_grad():
        logits = network(patches.inputs)
    assert logits.shape == (2, 5, 16, 16)
    assert torch.isfinite(logits).all()


def test_output_weights_keep_their_direction_where_a_run_goes_on_in_phase_2(
    bank: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps a phase. The run is stopped after the first step of phase 2."""
    config, split = on_scans("lws"), Split(train=("A",), inner=(), held_out=("E",), fold=0)
    run(tmp_path / "whole", bank, config, split=split)
    add, draws = Ledger.add, iter(range(4))

    def add_and_signal(self: Ledger, draw: Draw, counts: np.ndarray) -> None:
        if next(draws) == 2:
            signal.raise_signal(signal.SIGTERM)
        add(self, draw, counts)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "add", add_and_signal)
        assert run(tmp_path / "run", bank, config, split=split).ended == "stopped"
    assert run(tmp_path / "run", bank, config, split=split, resume=True).ended == "done"
    whole, resumed = (load_checkpoint(tmp_path / name / LAST).weights for name in ("whole", "run"))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


@pytest.mark.parametrize("name", ONLY_IMAGES)
def test_a_remedy_of_images_is_refused_for_scans_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=f"remedy '{name}': its [a-z]+ is only for images"):
        on_scans(name)


def on_images(*names: str, iterations: int = 2, rho: int = 4) -> StudySettings:
    tree: dict[str, Any] = {
        "images": {"name": "npz"}, "base": 40, "network": {"name": "lenet5"},
        "distributions": [{"kind": "step", "rho": [rho], "mu": [0.5]}],
        "methods": {name: {"networks": 2} if load_recipe(name).committee else {} for name in names},
        "training": {"iterations": iterations, "batch_size": 16},
        "decisions": {"priors": ["set", "ledger"]},
    }  # fmt: skip
    return parse_settings(StudySettings, tree)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty test and 40 training images of four classes: a bright stripe at the place of the class."""
    labels = np.repeat(np.arange(4), 40)
    pixels = np.random.default_rng(0).integers(0, 100, (160, 20, 20), dtype=np.uint8)
    pixels[np.arange(160)[:, None], labels[:, None] * 5 + np.arange(4)] += 100
    path = tmp_path_factory.mktemp("images") / "stripes.npz"
    np.savez(path, train_images=pixels, train_labels=labels, test_images=pixels[::2], test_labels=labels[::2])
    return path


@pytest.mark.parametrize("name", [name for name in remedy_names() if name not in ONLY_SCANS])
def test_on_images_a_remedy_trains_saves_loads_and_predicts(name: str, images: Path, tmp_path: Path) -> None:
    settings = on_images(name)
    bench = open_bench(settings, open_images(settings.images, images, cache=None), runtime=CPU)
    (job,) = study_jobs(settings)
    drawn = np.flatnonzero(np.arange(160) % 40 < np.repeat([10, 10, 40, 40], 40))
    cell = Cell(settings, bench, CPU, bench.available.restrict(drawn), job, 0)
    for number, fitted in enumerate(alone(cell.train())):
        torch.save(fitted.network.state_dict(), tmp_path / f"{number}.pt")
        loaded = build_network(settings, bench.available.set, seed=9, runtime=CPU)
        loaded.load_state_dict(torch.load(tmp_path / f"{number}.pt", weights_only=True))
        test = bench.parts["test"]
        found, expected = (probabilities(network, test, runtime=CPU) for network in (loaded, fitted.network))
        assert found.shape == (80, 4)
        assert found.sum(1) == pytest.approx(1)
        assert (found == expected).all()


@pytest.mark.parametrize("name", ONLY_SCANS)
def test_a_remedy_of_regions_is_refused_for_images_in_one_line(
    name: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="compares regions of voxels, and an image has one class"):
        run_study(on_images(name), tmp_path, folder=images, on=GridWorkers(n=1, device="cpu"))


@pytest.mark.parametrize("name", ["smote", "smote_boost"])
def test_a_class_of_one_image_is_refused_before_anything_trains(
    name: str, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"methods.{name}: a class with 1 image has no neighbor"):
        run_study(on_images(name, rho=40), tmp_path, folder=images, on=GridWorkers(n=1, device="cpu"))


def test_the_page_lists_each_remedy_in_both_tables() -> None:
    page = (Path(__file__).parents[2] / "docs" / "remedies.md").read_text()
    for part in ("what", "gain"):
        rows = page.split(f"<!-- {part} -->")[1].split(f"<!-- end of {part} -->")[0]
        assert sorted(re.findall(r"^\| `(\w+)` \|", rows, flags=re.MULTILINE)) == sorted(remedy_names())


def test_the_page_says_of_each_remedy_which_wing_it_is_for() -> None:
    page = (Path(__file__).parents[2] / "docs" / "remedies.md").read_text()
    wings = dict(re.findall(r"^\| `(\w+)` \|.*\| (both|images|scans)[ *]*\|$", page, flags=re.MULTILINE))
    assert {name for name, wing in wings.items() if wing == "images"} == set(ONLY_IMAGES)
    assert {name for name, wing in wings.items() if wing == "scans"} == set(ONLY_SCANS)


def test_the_study_of_all_remedies_has_each_that_is_for_images() -> None:
    """All but balanced softmax, which is the same network as logit adjustment."""
    settings = load_settings(StudySettings, "mnist_remedies", shelf="studies")
    assert set(settings.methods) == set(remedy_names()) - {*ONLY_SCANS, "balanced_softmax"}
