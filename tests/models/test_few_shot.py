"""Networks that are shown a few images of each class, on features a person can look at."""

import math

import pytest
import torch
from torch import nn

from brats_seg.models.few_shot import (
    Matching,
    MemoryCell,
    MemoryNetwork,
    Prototypical,
    make_embedding,
    n_features,
)

SIZES = {"ways": 2, "shots": 2, "queries": 1}
SUPPORT = torch.tensor([[[[0.0, 2.0], [0.0, 4.0]], [[1.0, 0.0], [3.0, 0.0]]]])
"""One episode of two classes: class 0 about (0, 3), class 1 about (2, 0)."""


def test_the_embedding_has_the_features_it_is_said_to_have():
    for side in ((28, 28), (32, 40), (16, 16)):
        features = make_embedding(3, width=5)(torch.rand(2, 3, *side))
        assert features.shape == (2, n_features(side, width=5))


def test_prototypes_are_class_means_and_scores_squared_distances():
    scores = Prototypical(nn.Flatten(), **SIZES).scores(SUPPORT, torch.tensor([[[0.0, 0.0], [2.0, 1.0]]]))
    assert scores[0].flatten().tolist() == pytest.approx([-9.0, -4.0, -8.0, -1.0], abs=1e-4)


def test_matching_is_the_share_of_the_attention_that_a_class_gets():
    scores = Matching(nn.Flatten(), **SIZES).scores(SUPPORT, torch.tensor([[[0.0, 7.0], [1.0, 1.0]]]))
    own = math.exp(1) / (math.exp(1) + math.exp(0))  # both images of a class have the same cosine
    assert scores.exp()[0].flatten().tolist() == pytest.approx([own, 1 - own, 0.5, 0.5], abs=1e-5)


def test_the_loss_of_an_episode_is_the_mean_loss_of_its_queries():
    # Two episodes of 2 classes, 2 shown and 1 query each; images of 1 x 1 x 2 are their own features.
    first = torch.tensor([[0.0, 2.0], [0.0, 4.0], [0.0, 3.0], [1.0, 0.0], [3.0, 0.0], [2.0, 0.0]])
    images = torch.cat([first, torch.zeros(6, 2)]).reshape(12, 1, 1, 2)
    losses = Prototypical(nn.Flatten(), **SIZES)(images)[:, 0]
    right = math.log(1 + math.exp(-13))  # each query lies on its own mean, 13 away from the other's
    assert losses.tolist() == pytest.approx([right] * 6 + [math.log(2)] * 6, abs=1e-5)


def test_a_memory_gives_back_what_was_written_under_the_key():
    torch.manual_seed(0)
    cell = MemoryCell(2, hidden=3, slots=4, width=2)
    state = cell.begin(1)
    with torch.no_grad():
        cell.head.weight.zero_()
        # key and content (1, 0), so sharp a strength that one slot is read, and always the least used written
        cell.head.bias.copy_(torch.tensor([9.0, 0.0, 9.0, 0.0, 1000.0, -1000.0]))
        outputs, state = cell(torch.zeros(1, 2), state)
        assert state.slots[0, :, 0].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-5)
        assert outputs[0, 3:].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)
        cell.head.bias.copy_(torch.tensor([9.0, 0.0, 0.0, 9.0, 1000.0, -1000.0]))
        outputs, state = cell(torch.zeros(1, 2), state)
        # (0, 1) went to another slot, and the key (1, 0) still recalls (1, 0)
        assert state.slots[0].sum(0).tolist() == pytest.approx([1.0, 1.0], abs=1e-5)
        assert outputs[0, 3:].tolist() == pytest.approx([1.0, 0.0], abs=1e-5)


def test_the_network_with_a_memory_gives_a_score_for_each_class_and_learns():
    torch.manual_seed(0)
    network = MemoryNetwork(nn.Flatten(), n_features=2, **SIZES)
    assert network.scores(SUPPORT, torch.rand(1, 5, 2)).shape == (1, 5, 2)
    loss = network(torch.rand(12, 1, 1, 2)).mean()
    loss.backward()
    assert all(p.grad is not None for p in network.cell.parameters())
