"""The outer loop by itself: ten dots in two classes, a network of one layer, and scores that are made up."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from brats_seg.core.config import Config, parse_config
from brats_seg.core.runtime import Runtime, StopRequest
from brats_seg.core.sections import Hard
from brats_seg.core.shapes import Ids
from brats_seg.imbalance.index import ClassIndex
from brats_seg.imbalance.sampler import Draw
from brats_seg.imbalance.samplers import HardSampler
from brats_seg.training.loop import Loop, Record
from brats_seg.training.phases import Method
from brats_seg.training.steps import Examples

CPU = Runtime(torch.device("cpu"))
LABELS = np.array([0] * 8 + [1] * 2)
DOTS = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


class Dots:
    """Ten examples of three numbers; those of class 1 are hard."""

    def __init__(self) -> None:
        self.index = ClassIndex.from_labels(LABELS, ("common", "rare"))

    def batch(self, draw: Draw, *, number: int) -> Examples:
        ids = torch.from_numpy(draw.ids)
        return Examples(DOTS[ids], torch.from_numpy(LABELS[draw.ids].astype(np.uint8)), None)

    def hard_pools(
        self, network: nn.Module, sampler: HardSampler, *, hard: Hard, seed: int
    ) -> Mapping[int, Ids]:
        return {0: np.empty(0, np.int64), 1: np.array([8, 9])}


class Scores:
    """Made-up scores, one for each look."""

    def __init__(self, *values: float) -> None:
        self.left: Iterator[float] = iter(values)
        self.n_looks = 0

    def __call__(self, network: nn.Module) -> dict[str, float]:
        assert not network.training
        self.n_looks += 1
        return {"score": next(self.left)}


def knobs(**sections: Any) -> Config:
    training = {"epochs": 5, "steps": 2, "batch_size": 4}
    return parse_config({"training": training, "sampler": {"kind": "balanced"}, **sections})


def make_loop(
    config: Config, *, scorer: Scores | None = None, record: Record | None = None, **more: Any
) -> Loop:
    torch.manual_seed(0)
    source = Dots()
    method = Method(config=config, index=source.index, runtime=CPU, targets="images", **more)
    return Loop(
        method=method, phase=method.first(), network=nn.Linear(3, 2), source=source,
        record=Record() if record is None else record, scorer=scorer,
    )  # fmt: skip


def test_the_network_is_scored_every_few_epochs_and_at_the_end() -> None:
    scorer = Scores(0.1, 0.5, 0.3)  # after epochs 2, 4 and 5
    loop = make_loop(knobs(validation={"every": 2}), scorer=scorer)
    assert loop.run() == "done"
    assert (loop.n_done, loop.n_epochs, scorer.n_looks) == (10, 5, 3)
    assert (loop.best.at, loop.best.score) == (4, 0.5)


def test_it_ends_where_the_score_has_not_risen_for_so_many_epochs() -> None:
    loop = make_loop(knobs(validation={"patience": 2}), scorer=Scores(0.5, 0.4, 0.3))
    assert loop.run() == "done"
    assert (loop.n_epochs, loop.best.at) == (3, 1)


def test_it_stops_within_an_epoch_and_goes_on_to_the_same_weights() -> None:
    saved: list[int] = []

    class Saves(Record):
        def save(self, loop: Loop) -> None:
            saved.append(loop.n_done)

    whole, parts = make_loop(knobs()), make_loop(knobs(), record=Saves())
    whole.run()
    assert parts.run(StopRequest(asked=True)) == "stopped"
    assert (saved, parts.n_done) == ([1], 1)
    assert parts.run() == "done"
    for one, other in zip(
        whole.steps.learner.weights().values(), parts.steps.learner.weights().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_it_ends_where_the_record_says_that_the_loss_is_no_number() -> None:
    class Fails(Record):
        def take_losses(self, losses: Any) -> None:
            self.has_failed = losses[-1][0] == 2

    loop = make_loop(knobs(), record=Fails())
    assert loop.run() == "done"
    assert loop.n_done == 3


@pytest.mark.parametrize(("redraw", "n_samplers"), [("never", 1), ("epoch", 3)])
def test_a_subset_is_drawn_anew_between_two_passes(redraw: str, n_samplers: int) -> None:
    # A pass shows the 2 examples that undersampling leaves of each class in a batch: 3 passes in 3 steps.
    config = knobs(sampler={"kind": "undersample"}, training={"epochs": 3, "steps": 1, "batch_size": 4})
    loop = make_loop(config, redraw=redraw)
    loop.run()
    assert loop.n_samplers == n_samplers


def test_hard_examples_are_asked_for_between_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = knobs(
        sampler={"kind": "hard"}, hard={"recycle": True}, training={"epochs": 40, "steps": 1, "batch_size": 4}
    )
    loop = make_loop(config)
    drawn: list[Draw] = []
    batch = loop.source.batch

    def noting(draw: Draw, number: int) -> Any:
        drawn.append(draw)
        return batch(draw, number=number)

    monkeypatch.setattr(loop.steps.source, "batch", noting)
    loop.run()
    first, *_, last = drawn
    assert not first.hard.any()
    assert last.hard[last.classes == 1].all()
    assert not last.hard[last.classes == 0].any()
