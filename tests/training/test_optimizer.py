import pytest
import torch
from torch import nn

from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Optimizer
from brats_seg.models.losses import make_loss
from brats_seg.training.optimizer import RunningMean, learning_rate, make_optimizer
from brats_seg.training.step import Learner, Schedule


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3))


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_each_kind_moves_downhill_and_decays_kernels_alone(kind: str) -> None:
    net = network()
    knobs = Optimizer.model_validate({"kind": kind, "lr": 0.01, "weight_decay": 0.1})
    optimizer = make_optimizer(knobs, net)
    assert [(len(g["params"]), g["weight_decay"]) for g in optimizer.param_groups] == [(1, 0.1), (3, 0.0)]
    x = torch.randn(4, 2, 8, 8)
    losses = []
    for _ in range(20):
        loss = (net(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_everything_decays_where_asked_and_momentum_is_nesterovs_unless_not() -> None:
    knobs = Optimizer.model_validate({"kind": "sgd", "weight_decay": 0.1, "decay": "everything"})
    assert [g["weight_decay"] for g in make_optimizer(knobs, network()).param_groups] == [0.1, 0.1]
    assert make_optimizer(knobs, network()).defaults["nesterov"]
    for plain in ({"nesterov": False}, {"momentum": 0.0}):
        assert not make_optimizer(knobs.model_copy(update=plain), network()).defaults["nesterov"]


def test_frozen_weights_stay_out() -> None:
    net = network()
    net[0].requires_grad_(False)
    assert len(make_optimizer(Optimizer(), net).param_groups) == 1


def test_rates_by_hand() -> None:
    def rates(n: int, **knobs: object) -> list[float]:
        optimizer = Optimizer.model_validate({"lr": 1.0, **knobs})
        return [round(learning_rate(optimizer, step, n_steps=n), 4) for step in range(n)]

    assert rates(3, schedule="constant") == [1, 1, 1]
    assert rates(4, schedule="cosine") == [1, 0.8536, 0.5, 0.1464]
    assert rates(4, schedule="poly") == [1, round(0.75**0.9, 4), round(0.5**0.9, 4), round(0.25**0.9, 4)]
    assert rates(4, schedule="linear") == [1, 0.75, 0.5, 0.25]
    assert rates(3, schedule="inverse", gamma=1.0, power=2.0) == [1, 0.25, round(1 / 9, 4)]
    assert rates(3, schedule="inverse", gamma=1.0, power=2.0, warmup_steps=1) == [1, 1, 0.25]
    assert rates(10, schedule="steps", drops=(0.3, 0.8), drop_factor=0.5) == [
        1,
        1,
        1,
        0.5,
        0.5,
        0.5,
        0.5,
        0.5,
        0.25,
        0.25,
    ]
    assert rates(6, schedule="poly", warmup_steps=2) == [
        0.5,
        1,
        1,
        round(0.75**0.9, 4),
        round(0.5**0.9, 4),
        round(0.25**0.9, 4),
    ]


def test_a_rate_drops_at_the_step_that_its_share_is_rounded_to() -> None:
    knobs = Optimizer(lr=1.0, schedule="steps", drops=(0.5714286, 0.7142857), drop_factor=0.1)
    assert [
        learning_rate(knobs, step, n_steps=70_000) for step in (39_999, 40_000, 49_999, 50_000)
    ] == pytest.approx([1, 0.1, 0.1, 0.01])


def test_running_mean_by_hand() -> None:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, 0.0)
    mean = RunningMean(net, decay=0.5)
    nn.init.constant_(net.weight, 1.0)
    mean.update(net, n_steps=1)  # decay min(0.5, 2/11): 0 * 2/11 + 1 * 9/11
    assert mean.network.weight.item() == pytest.approx(9 / 11)
    mean.update(net, n_steps=1000)  # decay 0.5
    assert mean.network.weight.item() == pytest.approx(10 / 11)


def test_running_mean_takes_in_batch_statistics_too_and_learns_nothing_itself() -> None:
    net = network()
    mean = RunningMean(net, decay=0.9)
    net(torch.randn(8, 2, 8, 8) + 5)
    mean.update(net, n_steps=1)
    assert mean.network[1].num_batches_tracked == 1
    expected = 9 / 11 * net[1].running_var + 2 / 11 * torch.ones(3)
    torch.testing.assert_close(mean.network[1].running_var, expected)
    assert not any(p.requires_grad for p in mean.network.parameters())
    assert not mean.network.training


def test_biases_of_convolutions_and_linear_layers_have_a_rate_of_their_own() -> None:
    """One step of gradient descent by a rate of 0.5: a gradient of 1 moves a weight by 0.5, and a bias at
    twice the rate by 1.
    """
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(1, 1))
    knobs = Optimizer(
        kind="sgd", lr=0.5, momentum=0.0, weight_decay=0.0, schedule="constant", bias_lr_factor=2.0
    )
    runtime = Runtime(torch.device("cpu"))
    learner = Learner(
        net,
        loss=make_loss("cross_entropy"),
        schedule=Schedule(optimizer=knobs, n_steps=1, batch_size=1),
        runtime=runtime,
    )
    before = {name: weight.detach().clone() for name, weight in net.named_parameters()}
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.move(0)
    moved = {name: float((before[name] - weight).detach().mean()) for name, weight in net.named_parameters()}
    assert moved == pytest.approx(
        {"0.weight": 0.5, "0.bias": 1, "1.weight": 0.5, "1.bias": 0.5, "3.weight": 0.5, "3.bias": 1}
    )
