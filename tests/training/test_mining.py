import numpy as np
import pytest
import torch
from tiny_bank import write_bank
from torch import Tensor, nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.runtime import Runtime
from brats_seg.imbalance.groups import Groups
from brats_seg.models.readout import REGION_CLASSES
from brats_seg.training import mining
from brats_seg.training.mining import center_probabilities, draw_candidates, find_hard, is_hard

CPU = Runtime(torch.device("cpu"))
PLANTED = (0.1, 0.5, 0.8, 0.995)


class Planted(nn.Module):
    """Gives the class in channel 1 the probability in channel 0, the other four classes equal parts of the
    rest.
    """

    def forward(self, x: Tensor) -> Tensor:
        p = x[:, :1].clamp(1e-6, 1 - 1e-6)
        own = nn.functional.one_hot(x[:, 1].round().long(), 5).movedim(-1, 1).bool()
        return torch.where(own, p, (1 - p) / 4).log()


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> PatchBank:
    """A bank whose channel 0 holds planted probabilities and channel 1 the class."""
    path = write_bank(tmp_path_factory.mktemp("mining") / "bank", names=("A", "B"))
    for case in ("A", "B"):
        label = np.load(path / "cases" / case / "label.npy")
        image = np.zeros((*label.shape, 4), np.float16)
        image[..., 0] = np.resize(PLANTED, label.shape)
        image[..., 1] = np.where(label == 255, 0, label)
        np.save(path / "cases" / case / "image.npy", image)
    return PatchBank(path, patch_size=(16, 16))


def planted(bank: PatchBank, ids: np.ndarray) -> np.ndarray:
    return np.array([bank.volume(int(c))[0][z, y, x, 0] for c, z, y, x in bank.locate(ids)], np.float32)


def everything(bank: PatchBank) -> dict[int, np.ndarray]:
    return draw_candidates(bank.index, classes=range(5), n_of_class=np.full(5, 10**6), seed=0, epoch=1)


def test_hard_is_wrong_or_unsure() -> None:
    p = np.array([[0.4, 0.6], [0.6, 0.4], [0.75, 0.25], [0.2, 0.8]], np.float32)
    assert is_hard(p, np.array([0, 0, 0, 1]), threshold=0.75).tolist() == [True, True, False, False]


def test_a_network_of_regions_is_wrong_where_its_regions_give_another_class() -> None:
    """Healthy 0.4, edema 0.3, enhancing 0.3: the whole tumor has 0.6 and the core 0.3, so the class is edema,
    although healthy is the likeliest class.
    """
    p = np.array([[0.4, 0.0, 0.3, 0.3]] * 2, np.float32)
    classes = np.array([2, 0])
    assert is_hard(p, classes, threshold=0.0, readout="regions").tolist() == [False, True]
    assert is_hard(p, classes, threshold=0.75, readout="regions").tolist() == [True, True]
    assert is_hard(p, classes, threshold=0.0).tolist() == [True, False]


@pytest.mark.parametrize("way", ["slices", "patches"])
def test_probabilities_of_regions_are_those_of_their_sigmoids(
    way: str, bank: PatchBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits 0, 2, 1, 1.5 of healthy, merged core, edema, enhancing core: whole is sigmoid(1 - 0), core
    sigmoid(2 - 1), active sigmoid(1.5 - 2).
    """

    class Regions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([0.0, 2.0, 1.0, 1.5]).view(1, 4, 1, 1).expand(len(x), 4, *x.shape[2:])

    monkeypatch.setattr(mining, "_slices_are_cheaper", lambda *_: way == "slices")
    four = PatchBank(bank.path, patch_size=(16, 16))
    four.classes = REGION_CLASSES
    found = center_probabilities(Regions().eval(), four, ids=everything(bank)[2][:3], readout="regions")
    whole, core, active = (1 / (1 + np.exp(-logit)) for logit in (1.0, 1.0, -0.5))
    np.testing.assert_allclose(found, [[1 - whole, core - active, whole - core, active]] * 3, atol=1e-6)


@pytest.mark.parametrize(("threshold", "under"), [(0.0, {0.1}), (0.75, {0.1, 0.5}), (0.99, {0.1, 0.5, 0.8})])
@pytest.mark.parametrize("way", ["slices", "patches"])
def test_exactly_the_planted_examples_under_the_threshold_are_hard(
    bank: PatchBank, threshold: float, under: set[float], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mining, "_slices_are_cheaper", lambda *_: way == "slices")
    candidates = everything(bank)
    pools = find_hard(Planted().eval(), bank, candidates=candidates, threshold=threshold, runtime=CPU)
    assert set(pools) == set(range(5))
    for cls, ids in candidates.items():
        expected = np.isin(planted(bank, ids), np.array(sorted(under), np.float16).astype(np.float32))
        assert pools[cls].tolist() == sorted(ids[expected].tolist())


def test_slices_are_taken_where_they_cost_less_and_show_the_same(bank: PatchBank) -> None:
    many = np.concatenate(list(everything(bank).values()))
    network = nn.Conv2d(4, 5, 1).eval()
    assert mining._slices_are_cheaper(network, bank, many)
    assert not mining._slices_are_cheaper(network, bank, many[:2])
    assert not mining._slices_are_cheaper(nn.Sequential(network, nn.GroupNorm(1, 5)), bank, many)
    by_slices = center_probabilities(network, bank, ids=many)
    by_patches = np.concatenate(
        [center_probabilities(network, bank, ids=many[i : i + 2]) for i in range(0, 40, 2)]
    )
    np.testing.assert_allclose(by_slices[:40], by_patches, atol=1e-5)


def test_slices_around_are_shown_in_slices_as_in_patches(bank: PatchBank) -> None:
    deep = PatchBank(bank.path, patch_size=(16, 16), slices_around=1)
    many = np.concatenate(list(everything(deep).values()))
    torch.manual_seed(0)
    network = nn.Conv2d(12, 5, 1).eval()
    assert mining._slices_are_cheaper(network, deep, many)
    by_slices = center_probabilities(network, deep, ids=many)
    by_patches = mining._from_patches(network, deep, many, "softmax")
    np.testing.assert_allclose(by_slices, by_patches, atol=1e-5)


@pytest.mark.parametrize("patch_size", [(11, 13), (12, 14)])
def test_the_center_stays_the_center_where_a_network_takes_a_margin_off(
    bank: PatchBank, patch_size: tuple[int, int]
) -> None:
    class Inner(Planted):
        margin = 5

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)[:, :, 5:-5, 5:-5]

    bank = PatchBank(bank.path, patch_size=patch_size)
    ids, cls = everything(bank)[2][:9], 2
    for found in (
        mining._from_patches(Inner().eval(), bank, ids, "softmax"),
        mining._from_slices(Inner().eval(), bank, ids, 1, "softmax"),
    ):
        np.testing.assert_allclose(found[:, cls], planted(bank, ids), atol=1e-3)


def test_two_ranks_find_what_one_finds(bank: PatchBank, monkeypatch: pytest.MonkeyPatch) -> None:
    candidates, network = everything(bank), Planted().eval()
    alone = find_hard(network, bank, candidates=candidates, threshold=0.75, runtime=CPU)
    parts: list[dict[int, np.ndarray]] = []
    monkeypatch.setattr(Runtime, "gather", lambda _, value: [*parts, value])
    for rank in (0, 1):
        runtime = Runtime(torch.device("cpu"), rank=rank, world_size=2)
        together = find_hard(network, bank, candidates=candidates, threshold=0.75, runtime=runtime)
        if rank == 0:
            assert all(0 < len(together[cls]) < len(alone[cls]) for cls in alone)  # its half of the cases
            parts.append(together)
    assert all(np.array_equal(together[cls], alone[cls]) for cls in alone)


@pytest.mark.parametrize(("patch_size", "most"), [((16, 16), 4), ((2, 16, 16), 2), ((5, 32, 24), 1)])
def test_no_pass_over_patches_holds_more_voxels_than_allowed(
    bank: PatchBank, monkeypatch: pytest.MonkeyPatch, patch_size: tuple[int, ...], most: int
) -> None:
    monkeypatch.setattr(mining, "_VOXELS_AT_ONCE", 1024)
    monkeypatch.setattr(mining, "_slices_are_cheaper", lambda *_: False)
    shapes = []

    class Spy(Planted):
        def forward(self, x: Tensor) -> Tensor:
            shapes.append(len(x))
            return super().forward(x)

    ids = everything(bank)[2][:7]
    found = center_probabilities(Spy().eval(), PatchBank(bank.path, patch_size=patch_size), ids=ids)
    assert (max(shapes), sum(shapes)) == (most, 7)
    np.testing.assert_allclose(found[:, 2], planted(bank, ids), atol=1e-3)


def test_candidates_are_different_ids_of_their_class_and_follow_from_seed_and_epoch(bank: PatchBank) -> None:
    n_of_class = np.array([50, 5, 20, 10, 0])
    candidates = draw_candidates(bank.index, classes=(0, 1, 2, 3), n_of_class=n_of_class, seed=1, epoch=2)
    for cls, ids in candidates.items():
        assert len(set(ids.tolist())) == n_of_class[cls]
        assert {int(bank.volume(int(c))[1][z, y, x]) for c, z, y, x in bank.locate(ids)} == {cls}
    again = draw_candidates(bank.index, classes=(3, 0), n_of_class=n_of_class, seed=1, epoch=2)
    assert np.array_equal(again[0], candidates[0])
    later = draw_candidates(bank.index, classes=(0,), n_of_class=n_of_class, seed=1, epoch=3)
    assert not np.array_equal(later[0], candidates[0])
    assert len(everything(bank)[1]) == bank.index.counts[1]


def test_a_class_without_candidates_gets_an_empty_pool(bank: PatchBank) -> None:
    none = {2: np.empty(0, np.int64)}
    assert find_hard(Planted().eval(), bank, candidates=none, threshold=0.5, runtime=CPU)[2].size == 0


def test_candidates_follow_the_cases_that_are_drawn_first(bank: PatchBank) -> None:
    first_case = Groups(
        tuple(np.arange(1, n + 1) for n in bank.index.case_counts[0]), (None,) * 5
    )  # the first case alone
    n_of_class = np.full(5, 10)
    found = draw_candidates(
        bank.index, classes=range(5), n_of_class=n_of_class, seed=1, epoch=1, groups=first_case
    )
    for cls, ids in found.items():
        assert set(ids >> 32) == {0}
        assert 0 < len(set(ids.tolist())) == len(ids) <= 10
        assert {int(bank.volume(int(c))[1][z, y, x]) for c, z, y, x in bank.locate(ids)} == {cls}
