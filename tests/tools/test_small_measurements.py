"""The tools that measure the memory network on the copy task and the autoencoder of healthy patches."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

TOOLS = Path(__file__).parents[2] / "tools"


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_voxel_has_the_mean_score_of_the_patches_that_show_it():
    image = np.random.default_rng(0).random((2, 70, 100, 3)).astype(np.float16)
    scores = load("healthy_patches").score_slices(image, lambda patches: patches[:, 1])
    assert scores == pytest.approx(image[..., 1].astype(np.float64))


def test_dice_of_two_masks():
    dice = load("healthy_patches").dice
    assert dice(np.array([True, True, False]), np.array([False, True, True])) == 0.5
    assert dice(np.zeros(3, bool), np.zeros(3, bool)) == 1


def test_a_network_that_has_not_learned_gives_back_half_of_the_bits():
    tool = load("copy_task")
    torch.manual_seed(0)
    network, generator = tool.Copier(), torch.Generator().manual_seed(0)
    assert network(torch.zeros(3, 4, tool.BITS)).shape == (3, 4, tool.BITS)
    assert tool.bit_error(network, n=50, generator=generator) == pytest.approx(0.5, abs=0.1)
