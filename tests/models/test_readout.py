import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from brats_seg.models.readout import class_probabilities, decide, readout_of


def from_regions(*logits: float) -> torch.Tensor:
    """Class logits (1, 4, 1, 1, 1) whose region logits are those of whole, core and active."""
    whole, core, active = logits
    return torch.tensor([0.0, whole + core, whole, whole + core + active], dtype=torch.float64).view(
        1, 4, 1, 1, 1
    )


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def test_only_the_region_loss_is_read_by_regions() -> None:
    assert [readout_of(kind) for kind in ("cross_entropy", "dice_cross_entropy", "region")] == [
        "softmax",
        "softmax",
        "regions",
    ]


def test_a_softmax_is_the_default() -> None:
    logits = torch.randn(2, 5, 3, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(class_probabilities(logits), logits.softmax(1))


def test_class_probabilities_are_differences_of_those_of_nested_regions() -> None:
    """P(whole) 0.9, P(core) 0.6, P(active) 0.2: healthy 0.1, necrotic or non-enhancing 0.4, edema 0.3,
    enhancing 0.2.
    """
    found = class_probabilities(from_regions(logit(0.9), logit(0.6), logit(0.2)), readout="regions")
    assert found.flatten().tolist() == pytest.approx([0.1, 0.4, 0.3, 0.2])


@pytest.mark.parametrize(
    ("logits", "in_order"),
    [
        ((3.0, -1.0, 0.5), (3.0, -0.25, -0.25)),  # active likelier than core: both get their mean
        ((-2.0, 1.0, 0.0), (-1 / 3, -1 / 3, -1 / 3)),  # the mean of the first two, -0.5, is below the third
        ((0.0, -1.0, 4.0), (1.0, 1.0, 1.0)),  # the mean of the last two, 1.5, is above the first
    ],
)
def test_regions_in_conflict_get_their_mean(logits: tuple[float, ...], in_order: tuple[float, ...]) -> None:
    healthy, merged, edema, active = (
        class_probabilities(from_regions(*logits), readout="regions").flatten().tolist()
    )
    regions = [1 / (1 + np.exp(-value)) for value in in_order]
    assert [1 - healthy, merged + active, active] == pytest.approx(regions)
    assert edema == pytest.approx(regions[0] - regions[1])


@given(st.lists(st.floats(-8, 8), min_size=4, max_size=4))
def test_probabilities_of_regions_sum_to_1_and_their_decision_is_the_largest_logit(
    values: list[float],
) -> None:
    first, second = sorted(values)[:-3:-1]
    assume(first - second > 1e-6)
    logits = torch.tensor(values, dtype=torch.float64).view(1, 4, 1, 1, 1)
    found = class_probabilities(logits, readout="regions")
    assert float(found.min()) >= 0
    assert float(found.sum()) == pytest.approx(1)
    assert decide(found[0].numpy(), readout="regions").item() == int(np.argmax(values))


def test_of_equal_logits_one_of_the_largest_is_chosen() -> None:
    """Logits of bfloat16 are often equal."""
    logits = torch.randint(-2, 3, (1, 4, 20, 20, 20), generator=torch.Generator().manual_seed(0)).float()
    chosen = decide(class_probabilities(logits, readout="regions")[0].numpy(), readout="regions")
    of_chosen = logits[0].gather(0, torch.from_numpy(chosen).long()[None])[0]
    assert torch.equal(of_chosen, logits[0].amax(0))


def test_the_smallest_region_above_one_half_need_not_be_the_likeliest_class() -> None:
    probabilities = np.array([0.4, 0.0, 0.3, 0.3]).reshape(4, 1, 1, 1)  # whole 0.6, core and active 0.3
    assert decide(probabilities, readout="regions").item() == 2
    assert decide(probabilities).item() == 0
