import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_bank import free_port, knobs, start_child, write_bank
from torch import Tensor, nn

from brats_seg.bank.bank import PatchBank
from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime, start_runtime
from brats_seg.core.sections import Optimizer
from brats_seg.imbalance.samplers import make_sampler
from brats_seg.models.losses import make_loss
from brats_seg.models.networks import make_network
from brats_seg.training.step import Learner, Schedule, center_crop, count_middle

CPU = Runtime(torch.device("cpu"))
INPUTS = torch.randn(6, 4, 16, 16, generator=torch.Generator().manual_seed(0))
TARGETS = torch.randint(0, 5, (6, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def learner(
    network: nn.Module,
    *,
    runtime: Runtime = CPU,
    batch_size: int = 6,
    n_steps: int = 50,
    only: Sequence[nn.Module] = (),
    **plan: Any,
) -> Learner:
    return Learner(
        network,
        loss=make_loss("cross_entropy"),
        schedule=Schedule(optimizer=Optimizer(lr=0.01), n_steps=n_steps, batch_size=batch_size, **plan),
        runtime=runtime,
        only=only,
    )


def unet(norm: str) -> nn.Module:
    torch.manual_seed(0)
    return make_network(knobs(network={"norm": norm}).network, n_channels=4, n_classes=5, n_dims=2)


def losses_of(learning: Learner, n: int) -> list[float]:
    learning.begin_epoch()
    return [learning.learn(INPUTS, TARGETS, number=number)[0].item() for number in range(n)]


# Parts of a batch


@pytest.mark.parametrize("accumulate", [2, 4, 6])
def test_a_batch_in_parts_is_the_batch_for_a_group_norm_network(accumulate: int) -> None:
    whole, parts = (losses_of(learner(unet("group"), accumulate=n), 5) for n in (1, accumulate))
    assert parts == pytest.approx(whole, rel=1e-4)
    assert whole[-1] < whole[0]


def test_a_batch_has_no_more_parts_than_examples() -> None:
    with pytest.raises(UsageError, match=r"training\.accumulate 7: a batch of 6 examples has 1 to 6 parts"):
        learner(unet("group"), accumulate=7)


# The middle of the targets


def test_the_middle_by_hand() -> None:
    targets = torch.arange(7 * 6, dtype=torch.uint8).reshape(1, 7, 6)
    assert center_crop(targets, (1, 2)).tolist() == [[[3 * 6 + 2, 3 * 6 + 3]]]
    assert torch.equal(center_crop(targets, (7, 6)), targets)
    assert center_crop(torch.zeros(3, dtype=torch.uint8), ()).shape == (3,)
    marked = torch.tensor([[[0, 0, 0, 0], [0, 1, 255, 0], [0, 1, 2, 0], [0, 0, 0, 0]]], dtype=torch.uint8)
    assert count_middle(marked, margin=1, n_classes=3).tolist() == [0, 2, 1, 1]
    for side in (33, 34, 40):  # the center of the patch stays the center
        marked = torch.zeros((1, side, side), dtype=torch.uint8)
        marked[0, side // 2, side // 2] = 1
        kept = side - 32
        assert center_crop(marked, (kept, kept))[0, kept // 2, kept // 2] == 1


def test_a_network_without_padding_learns_from_the_middle_of_the_targets() -> None:
    torch.manual_seed(0)
    learning = learner(nn.Conv2d(4, 5, 5))
    expected = (
        make_loss("cross_entropy")(learning.network(INPUTS), TARGETS[:, 2:-2, 2:-2].contiguous())
        .mean()
        .item()
    )
    assert losses_of(learning, 1) == pytest.approx([expected])


# Several outputs


def deep_network() -> nn.Module:
    torch.manual_seed(0)
    network = {"name": "dynunet", "channels": (4, 8, 8, 8), "norm": "instance", "deep_supervision": 2}
    return make_network(knobs(network=network).network, n_channels=4, n_classes=5, n_dims=2)


def test_all_outputs_are_learned_from_and_the_first_alone_is_evaluated() -> None:
    learning, loss = learner(deep_network()), make_loss("cross_entropy")
    with torch.no_grad():
        outputs = learning.network.train()(INPUTS)
    levels = [
        loss(logits, TARGETS[:, :: 2**level, :: 2**level]).mean().item()
        for level, logits in enumerate(outputs)
    ]
    expected = (4 * levels[0] + 2 * levels[1] + levels[2]) / 7
    losses = losses_of(learning, 20)
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[-1] < losses[0]
    assert learning.evaluated()(INPUTS).shape == (6, 5, 16, 16)


@pytest.mark.parametrize("accumulate", [2, 6])
def test_a_batch_of_several_outputs_may_come_in_parts(accumulate: int) -> None:
    whole, parts = (losses_of(learner(deep_network(), accumulate=n), 3) for n in (1, accumulate))
    assert parts == pytest.approx(whole, rel=1e-4)


def test_the_output_layer_alone_learns_from_the_first_output() -> None:
    network = deep_network()
    learning = learner(network, only=(network.get_submodule("output_block"),))
    expected = make_loss("cross_entropy")(network.eval()(INPUTS), TARGETS).mean().item()
    assert losses_of(learning, 1) == pytest.approx([expected])


# One part that learns


def test_only_one_part_learns_and_the_norms_keep_their_statistics() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, 5, 1)
    )
    losses_of(learner(network), 3)  # leaves gradients behind
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learning = learner(network, only=(network[3],), n_steps=10, first_step=100)
    assert (learning.rate(100), learning.rate(105)) == (0.01, pytest.approx(0.01 * 0.5**0.9))
    learning.begin_epoch()
    for number in range(100, 110):
        learning.learn(INPUTS, TARGETS, number=number)
    assert {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])} == {
        "3.weight",
        "3.bias",
    }
    assert network[0].weight.grad is None


# Half precision


class Loud(nn.Module):
    """Its first gradients overflow in float16 at the scale that a scaler begins with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("kc,bchw->bkhw", self.weight * 300, x)


def test_float16_scales_the_loss_and_skips_the_steps_that_overflow() -> None:
    half = Runtime(torch.device("cpu"), torch.float16)
    network = Loud()
    learning = learner(network, runtime=half)
    scale = learning.state_dict()["scaler"]["scale"]
    learning.begin_epoch()
    learning.learn(1e3 * INPUTS, TARGETS, number=0)
    assert torch.isfinite(network.weight).all()
    for number in range(1, 20):
        learning.learn(INPUTS, TARGETS, number=number)
    state = learning.state_dict()
    assert state["scaler"]["scale"] <= scale
    assert not torch.equal(network.weight, torch.ones(5, 4))
    again = learner(Loud(), runtime=half)
    again.load_state_dict(state, weights=learning.weights())
    assert again.state_dict()["scaler"] == state["scaler"]
    assert learner(Loud()).state_dict()["scaler"] == {}


# Ranks

N_STEPS = 20


def train_in_float64(bank: Path, out: Path, runtime: Runtime, accumulate: int) -> None:
    """Steps of a group-norm network; the losses and this rank's draws are saved."""
    opened = PatchBank(bank, patch_size=(16, 16))
    sampler = make_sampler(
        "balanced",
        opened.index,
        batch_size=6,
        steps=N_STEPS,
        seed=0,
        rank=runtime.rank,
        n_ranks=runtime.world_size,
    )
    learning = learner(unet("group").double(), runtime=runtime, accumulate=accumulate)
    learning.begin_epoch()
    losses, ids = [], []
    for number in range(N_STEPS):
        draw = sampler.next()
        batch = opened.batch(draw.ids)
        losses.append(learning.learn(batch.inputs.double(), batch.targets, number=number)[0].item())
        ids.append(draw.ids)
    np.savez(out, losses=np.array(losses), ids=np.stack(ids))


def rank_in_child(rank: int, n_ranks: int, port: int, bank: Path, out: Path, accumulate: int) -> None:
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(n_ranks), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        LOCAL_RANK=str(rank),
    )  # fmt: skip
    runtime = start_runtime(device="cpu", precision="float32", threads=1)
    train_in_float64(bank, out, runtime, accumulate)


@pytest.mark.parametrize(("n_ranks", "accumulate"), [(2, 1), (3, 1), (2, 3)])
def test_several_ranks_and_one_draw_the_same_and_have_the_same_losses(
    tmp_path: Path, n_ranks: int, accumulate: int
) -> None:
    bank = write_bank(tmp_path / "bank", names=("A", "B"))
    port = free_port()
    ranks = [
        start_child(rank_in_child, rank, n_ranks, port, bank, tmp_path / f"{rank}.npz", accumulate)
        for rank in range(n_ranks)
    ]
    train_in_float64(bank, tmp_path / "one.npz", CPU, 1)
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    one, *several = (np.load(tmp_path / f"{name}.npz") for name in ("one", *range(n_ranks)))
    for rank, own in enumerate(several):
        assert np.array_equal(one["ids"][:, rank::n_ranks], own["ids"])
        np.testing.assert_array_equal(own["losses"], several[0]["losses"])
    assert one["losses"][-1] < one["losses"][0]
    np.testing.assert_allclose(several[0]["losses"], one["losses"], rtol=0, atol=1e-10)


def test_a_network_is_compiled_where_the_knob_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[tuple[nn.Module, str | None]] = []
    monkeypatch.setattr(torch, "compile", lambda network, mode: compiled.append((network, mode)) or network)
    network = unet("group")
    for knob in ("never", "always", "graphs"):
        losses_of(learner(network, runtime=Runtime(torch.device("cpu"), compile=knob)), 1)
    assert compiled == [(network, None), (network, "reduce-overhead")]
