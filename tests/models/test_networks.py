"""Every network by every knob: what it takes works in full, what it does not take is refused with the
reason.
"""

import numpy as np
import pytest
import torch
from monai.networks.nets import BasicUNet
from monai.networks.nets.basic_unet import UpCat
from torch import nn

from brats_seg.core.errors import UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Network
from brats_seg.inference.dense import Feed, label_map
from brats_seg.inference.ready import ready_for_inference
from brats_seg.inference.windowed import choose_window, needs_windows
from brats_seg.models.builders import margin_of
from brats_seg.models.losses import LOSSES, make_loss
from brats_seg.models.networks import NETWORKS, check_patch_size, make_network, network_divisor, output_layer

CLASSES = ("healthy", "necrotic_or_non_enhancing", "edema", "enhancing_core")
CHANNELS = {
    "unet2d": (4, 8),
    "unet3d": (4, 8),
    "basic_unet2d": (4,) * 6,
    "attention_unet2d": (4, 8),
    "dynunet": (4, 8, 8),
    "segresnet": (4, 8),
    "segresnet_ds": (4, 8),
    "mednext": (4, 8),
    "swin_unetr": (12,),
    "two_path": (4, 4),
    "input_cascade": (4, 4),
}
SLOWEST = ("swin_unetr", 3)
TRAINABLE = [
    (name, n_dims) for name, recipe in NETWORKS.items() if name != "cascade" for n_dims in recipe.dims
]


def knobs(name: str, **others: object) -> Network:
    """The smallest of its kind, with the first norm that it takes."""
    return Network.model_validate(
        {
            "name": name,
            "channels": CHANNELS[name],
            "num_res_units": 1,
            "norm": NETWORKS[name].norms[0],
            **others,
        }
    )


def smallest_side(network: Network, n_dims: int) -> int:
    """Of a patch; the transformer gets no more than one voxel at the bottom, everything else two."""
    margin = NETWORKS[network.name].margin
    if margin:
        return 2 * margin + 3
    return network_divisor(network) * (1 if network.name == SLOWEST[0] else 2)


def build(network: Network, n_dims: int, *, n_classes: int = 4) -> nn.Module:
    torch.manual_seed(0)
    return make_network(network, n_channels=2, n_classes=n_classes, n_dims=n_dims)


def batch(network: Network, n_dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two patches (of the 3-D transformer one) and the targets of what comes out."""
    side, generator = smallest_side(network, n_dims), torch.Generator().manual_seed(1)
    n = 1 if (network.name, n_dims) == SLOWEST else 2
    targets = torch.randint(
        0, 4, (n, *[side - 2 * NETWORKS[network.name].margin] * n_dims), generator=generator
    )
    return torch.randn(n, 2, *[side] * n_dims, generator=generator), targets.to(torch.uint8)


def cascade_knobs(detector: Network, classifier: Network) -> Network:
    return Network(name="cascade", stages=(detector, classifier))


# What it takes


@pytest.mark.parametrize(("name", "n_dims"), TRAINABLE)
def test_every_network_learns_saves_loads_and_predicts(name: str, n_dims: int) -> None:
    network = knobs(
        name, **{"norm": "group"} if (name, n_dims) == SLOWEST else {}
    )  # one voxel of one patch has no batch statistics
    trained, (inputs, targets) = build(network, n_dims), batch(network, n_dims)
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        make_loss("cross_entropy")(trained(inputs), targets).mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())
        optimizer.step()
    fresh = build(network, n_dims)
    fresh.load_state_dict(trained.state_dict())
    image = np.random.default_rng(0).standard_normal((3, 7, 9, 2)).astype(np.float16)
    ready = [ready_for_inference(one, runtime=Runtime(torch.device("cpu"))) for one in (trained, fresh)]
    divisor = network_divisor(network)
    window = choose_window(ready[0], patch_size=inputs.shape[2:], image_shape=image.shape, divisor=divisor)
    labels = [
        label_map(one, image, feed=Feed(n_dims=n_dims, divisor=divisor, window=window)) for one in ready
    ]
    assert labels[0].shape == (3, 7, 9)
    assert np.array_equal(*labels)


@pytest.mark.parametrize("kind", sorted(LOSSES))
@pytest.mark.parametrize(("name", "n_dims"), [pair for pair in TRAINABLE if pair != SLOWEST])
def test_every_network_takes_two_steps_with_every_loss(name: str, n_dims: int, kind: str) -> None:
    network = knobs(name)
    trained, (inputs, targets) = build(network, n_dims), batch(network, n_dims)
    before = [p.detach().clone() for p in trained.parameters()]
    loss = make_loss(kind, classes=CLASSES, prior=(0.97, 0.01, 0.01, 0.01))
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        value = loss(trained(inputs), targets)
        value.mean().backward()
        optimizer.step()
    assert value.isfinite().all()
    assert any(not torch.equal(p, old) for p, old in zip(trained.parameters(), before, strict=True))


@pytest.mark.parametrize(("name", "n_dims"), TRAINABLE)
@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
def test_a_network_takes_a_norm_or_says_which(name: str, n_dims: int, norm: str) -> None:
    network = knobs(name, norm=norm)
    if norm not in NETWORKS[name].norms:
        with pytest.raises(
            UsageError, match=rf"network.norm '{norm}': '{name}' accepts {NETWORKS[name].norms[0]}"
        ):
            build(network, n_dims)
        return
    built = build(network, n_dims)
    kinds = {
        "batch": nn.modules.batchnorm._BatchNorm,
        "instance": nn.modules.instancenorm._InstanceNorm,
        "group": nn.GroupNorm,
    }
    found = {key for key, kind in kinds.items() if any(isinstance(m, kind) for m in built.modules())}
    if name == "mednext":  # an instance norm by another name
        assert all(m.num_groups == m.num_channels for m in built.modules() if isinstance(m, nn.GroupNorm))
        found = {"instance"} if found == {"group"} else found
    assert found == ({norm} if norm != "none" else set())
    assert needs_windows(built) == (norm in ("instance", "group") or name == "swin_unetr")


@pytest.mark.parametrize(("name", "n_dims"), TRAINABLE)
def test_every_network_has_the_dropout_asked_for_or_says_that_it_has_none(name: str, n_dims: int) -> None:
    if not NETWORKS[name].drops_out:
        with pytest.raises(UsageError, match=f"network.dropout 0.25: '{name}' has no dropout; use 0"):
            build(knobs(name, dropout=0.25), n_dims)
        return
    built = build(knobs(name, dropout=0.25), n_dims)
    assert {m.p for m in built.modules() if isinstance(m, nn.modules.dropout._DropoutNd)} - {0.0} == {0.25}


@pytest.mark.parametrize(("name", "n_dims"), TRAINABLE)
def test_the_output_layer_is_what_the_logits_come_from(name: str, n_dims: int) -> None:
    network = knobs(name)
    built, (inputs, _) = build(network, n_dims), batch(network, n_dims)
    given = []
    layer = output_layer(network, built)
    layer.register_forward_hook(lambda *_: given.append(_[2]))
    with torch.no_grad():
        logits = built.eval()(inputs)
    assert torch.equal(given[-1], logits)
    n_weights = sum(p.numel() for p in layer.parameters())
    assert 0 < n_weights < sum(p.numel() for p in built.parameters())


def test_networks_have_the_published_sizes() -> None:
    def n_weights(**chosen: object) -> int:
        network = Network.model_validate(chosen)
        return sum(p.numel() for p in make_network(network, n_channels=4, n_classes=5, n_dims=2).parameters())

    assert n_weights() == pytest.approx(1.61e6, rel=0.01)
    assert n_weights(name="basic_unet2d", channels=(16, 16, 32, 64, 128, 16)) == pytest.approx(
        0.5e6, rel=0.01
    )
    weights = 2 * 64 * (4 * 49 + 1) + 2 * 64 * (64 * 9 + 1) + 2 * 160 * (4 * 169 + 1) + 5 * (224 * 441 + 1)
    assert n_weights(name="two_path", channels=(64, 160), norm="none") == weights


def test_segresnet_has_the_published_blocks() -> None:
    network = make_network(
        Network(name="segresnet", channels=(8, 16, 32, 64)), n_channels=4, n_classes=4, n_dims=3
    )
    assert network.blocks_down == (1, 2, 2, 4)


def test_the_plain_unet_is_monais_and_stays_in_mixed_precision_where_it_joins() -> None:
    ours = build(knobs("basic_unet2d"), 2)
    theirs = BasicUNet(2, 2, 4, features=CHANNELS["basic_unet2d"], norm=("BATCH", {}), dropout=0.0)
    theirs.load_state_dict(ours.state_dict())
    images, _ = batch(knobs("basic_unet2d"), 2)
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)
    joined: list[torch.dtype] = []
    for block in (module for module in ours.modules() if isinstance(module, UpCat)):
        block.convs.register_forward_pre_hook(lambda _, given: joined.append(given[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        ours(images)
    assert joined == [torch.bfloat16] * 4


# What it does not take


def test_sides_must_fit_the_network() -> None:
    assert network_divisor(Network()) == 8
    assert network_divisor(knobs("basic_unet2d")) == 16
    assert network_divisor(knobs("swin_unetr")) == 32
    assert network_divisor(knobs("two_path")) == 1
    assert network_divisor(cascade_knobs(knobs("basic_unet2d"), Network())) == 16
    check_patch_size(Network(), patch_size=(64, 72))
    for side in (33, 49):
        check_patch_size(knobs("two_path"), patch_size=(side, 33))
    check_patch_size(knobs("input_cascade"), patch_size=(65, 65))
    check_patch_size(knobs("unet3d", norm="instance"), patch_size=(2, 2, 4))


def test_a_drawn_voxel_lies_where_the_network_labels_voxels() -> None:
    # Of 33 voxels a side `two_path` labels the middle one, of 49 the middle 17: 16 of the 48 steps from end
    # to end.
    check_patch_size(Network(), patch_size=(64, 64), jitter=1.0)
    check_patch_size(knobs("two_path"), patch_size=(49, 49), jitter=1 / 3)
    with pytest.raises(
        UsageError, match=r"sampler.jitter 0.6: 'two_path' labels the middle 17 of 49 voxels .* 0.33 at most"
    ):
        check_patch_size(knobs("two_path"), patch_size=(49, 49), jitter=0.6)
    with pytest.raises(UsageError, match=r"the middle 1 of 33 voxels .* 0 at most"):
        check_patch_size(knobs("two_path"), patch_size=(33, 33), jitter=0.1)


@pytest.mark.parametrize(
    ("network", "patch_size", "message"),
    [
        (Network(), (64, 33), "patch.size 64 x 33.*multiples of 8"),
        (knobs("swin_unetr"), (64, 48), "multiples of 32"),
        (knobs("two_path"), (34, 33), "patch.size 34 x 33: 'two_path' needs odd sides of at least 33"),
        (knobs("two_path"), (31, 33), "odd sides of at least 33"),
        (knobs("input_cascade"), (33, 33), "odd sides of at least 65"),
        (
            knobs("dynunet", norm="instance"),
            (4, 4, 4),
            "4 x 4 x 4: only one voxel is left at the lowest level.*a side of 8",
        ),
        (Network(name="unet4d"), (64, 64), "network.name 'unet4d' is unknown; the names are unet2d"),
        (cascade_knobs(Network(), Network()), (64, 64), "'cascade' is not trained: `brats-seg cascade`"),
    ],
)
def test_patches_that_cannot_be_trained_on_are_refused(
    network: Network, patch_size: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_patch_size(network, patch_size=patch_size)


@pytest.mark.parametrize(
    ("name", "recipe"), [(name, recipe) for name, recipe in NETWORKS.items() if len(recipe.dims) == 1]
)
def test_a_network_of_one_dimension_refuses_the_other(name: str, recipe: object) -> None:
    (own,) = NETWORKS[name].dims
    with pytest.raises(UsageError, match=f"'{name}' needs patches of {own} axes; patch.size has {5 - own}"):
        build(knobs(name), 5 - own)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(name="unet4d"), "network.name 'unet4d' is unknown; the names are unet2d"),
        (Network(channels=(32,)), r"network.channels \[32\]: 'unet2d' needs at least 2 numbers"),
        (Network(channels=(32, 0)), r"network.channels \[32, 0\]: each number must be 1 or more"),
        (Network(name="basic_unet2d"), "needs 6 numbers"),
        (Network(name="attention_unet2d", channels=(8,)), "at least 2 numbers"),
        (Network(name="dynunet", channels=(8, 16)), "at least 3 numbers"),
        (Network(name="segresnet", channels=(8, 16, 24)), "each number to be twice the number before"),
        (
            Network(name="segresnet", num_res_units=0),
            "network.num_res_units 0: 'segresnet' consists of residual units",
        ),
        (Network(name="swin_unetr"), "1 number, a multiple of 12"),
        (Network(name="swin_unetr", channels=(16,)), "1 number, a multiple of 12"),
        (
            Network(name="two_path"),
            "2 numbers, the widths of its local and its global path; the published widths are 64, 160",
        ),
        (Network(name="input_cascade"), "2 numbers"),
    ],
)
def test_what_cannot_be_built_is_refused_by_knob(network: Network, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build(network, 2)


# Folding and the cascade


@pytest.mark.parametrize(("name", "n_dims"), [pair for pair in TRAINABLE if pair != SLOWEST])
def test_folded_batch_norms_change_nothing(name: str, n_dims: int) -> None:
    network = knobs(name)
    built, (inputs, _) = build(network, n_dims), batch(network, n_dims)
    for _ in range(2):
        built(inputs)  # gives the batch norms something to fold
    ready = ready_for_inference(built, runtime=Runtime(torch.device("cpu")))
    left = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in ready.modules())
    assert left == name.startswith(
        "segresnet"
    )  # their norms go before the convolutions, with an activation between
    with torch.no_grad():
        torch.testing.assert_close(ready(inputs), built.eval()(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "stages", [("unet2d", "attention_unet2d"), ("unet2d", "two_path"), ("two_path", "input_cascade")]
)
def test_a_cascade_multiplies_the_probabilities_of_its_stages(stages: tuple[str, str]) -> None:
    both = tuple(knobs(name) for name in stages)
    cascade = build(cascade_knobs(*both), 2).eval()
    detector, classifier = (
        make_network(knob, n_channels=2, n_classes=n, n_dims=2).eval()
        for knob, n in zip(both, (2, 3), strict=True)
    )
    detector.load_state_dict(cascade.detector.state_dict())
    classifier.load_state_dict(cascade.classifier.state_dict())
    wide = torch.randn(2, 2, 76, 76, generator=torch.Generator().manual_seed(0))
    margin = margin_of(cascade)
    assert margin == max(NETWORKS[name].margin for name in stages)

    def around(network: nn.Module) -> torch.Tensor:
        """Probabilities of the middle 4 x 4."""
        n = 36 - margin_of(network)
        return torch.softmax(network(wide[..., n : 76 - n, n : 76 - n]), 1)

    with torch.no_grad():
        joint = cascade(wide[..., 36 - margin : 40 + margin, 36 - margin : 40 + margin]).exp()
        tumor, which = around(detector)[:, 1:], around(classifier)
    torch.testing.assert_close(joint.sum(1), torch.ones_like(joint[:, 0]))
    torch.testing.assert_close(joint, torch.cat([1 - tumor, tumor * which], 1))


def test_a_cascade_in_bfloat16_still_sums_to_one() -> None:
    ready = ready_for_inference(
        build(cascade_knobs(knobs("unet2d"), knobs("two_path")), 2),
        runtime=Runtime(torch.device("cpu"), torch.bfloat16),
    )
    with torch.inference_mode():
        logits = ready(torch.randn(1, 2, 36, 36, dtype=torch.bfloat16))
    torch.testing.assert_close(logits.exp().sum(1), torch.ones(1, 4, 4))


def test_a_cascade_has_no_output_layer() -> None:
    network = cascade_knobs(knobs("unet2d"), knobs("unet2d"))
    with pytest.raises(UsageError, match="'cascade' has no output layer; give the stages"):
        output_layer(network, build(network, 2))
