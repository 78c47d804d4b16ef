import dataclasses
import os
import pickle
import random
import resource
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from brats_seg.core.config import Config, parse_config
from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.runtime import Runtime
from brats_seg.core.sections import Network, Patch
from brats_seg.core.settings import dump_config
from brats_seg.models.checkpoint import Checkpoint, library_versions, load_checkpoint, save_checkpoint
from brats_seg.models.networks import make_network
from brats_seg.models.restore import check_same_data, check_same_run, restore_network, take_weights
from brats_seg.models.trained import TrainedNetwork, compose_checkpoints

CLASSES = ("healthy", "necrotic_core", "edema", "non_enhancing_core", "enhancing_core")
MODALITIES = ("t1n", "t1c", "t2w", "t2f")


def knobs(**sections: dict[str, Any]) -> Config:
    """Of a small 2-D run."""
    small = {"network": {"channels": (8, 16), "num_res_units": 0}, "patch": {"size": (16, 16)}}
    return parse_config(small | sections)


CONFIG = knobs()


def checkpoint(*, resume: dict[str, object] | None = None) -> Checkpoint:
    torch.manual_seed(1)
    return Checkpoint(
        weights=make_network(CONFIG.network, n_channels=4, n_classes=5, n_dims=2).state_dict(),
        config=dump_config(CONFIG),
        modalities=MODALITIES,
        classes=CLASSES,
        spacing_mm=(1.0, 1.0, 1.0),
        normalization={"percentiles": [0.5, 99.5], "n4": False},
        bank="abc",
        fold=2,
        train_cases=("A", "B"),
        inner_cases=("C",),
        held_out_cases=("D",),
        effective_prior=(0.5, 0.1, 0.1, 0.1, 0.2),
        natural_prior=(0.96, 0.01, 0.01, 0.01, 0.01),
        epoch=3,
        step=7,
        score=0.5,
        n_threads=1,
        precision="float32",
        versions=library_versions(),
        resume=resume,
    )


def resume(**changes: object) -> dict[str, object]:
    """What a run goes on from."""
    return {
        "learner": {"network": {}, "optimizer": {}, "scaler": {}},
        "sampler": {"epoch": 4, "step": 7, "pools": [{"ids": np.arange(5)}]},
        "ledger": {"hard": np.array([True]), "pair": (1, 2.5), "share": np.float64(0.1)},
        "log": {"epochs": [], "ledger": [], "timing": []},
        "loss_sum": 3.5,
        "best_epoch": None,
        "best_score": None,
    } | changes


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    saved = checkpoint(resume=resume())
    save_checkpoint(path, saved)
    found = load_checkpoint(path)
    for field in dataclasses.fields(Checkpoint):
        if field.name not in ("weights", "resume"):
            assert getattr(found, field.name) == getattr(saved, field.name), field.name
    assert all(torch.equal(found.weights[name], value) for name, value in saved.weights.items())
    assert found.resume is not None
    assert found.resume["sampler"]["pools"][0]["ids"].dtype == np.int64
    assert np.array_equal(found.resume["sampler"]["pools"][0]["ids"], np.arange(5))
    assert found.resume["ledger"]["hard"].tolist() == [True]
    assert (found.resume["ledger"]["pair"], found.resume["ledger"]["share"]) == ((1, 2.5), 0.1)
    assert found.parsed_config() == CONFIG


def test_the_network_comes_back_ready_to_predict(tmp_path: Path) -> None:
    saved = checkpoint()
    network = restore_network(saved, tmp_path, runtime=Runtime(torch.device("cpu")))
    fresh = make_network(CONFIG.network, n_channels=4, n_classes=5, n_dims=2).eval()
    fresh.load_state_dict(saved.weights)
    x = torch.randn(1, 4, 16, 16)
    torch.testing.assert_close(network(x), fresh(x))
    assert not network.training


def refused(path: Path, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    whole = path.read_bytes()
    for n in (0, 1, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:n])
        refused(path, "truncated or not a checkpoint|refused")


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.trace}",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, code = tmp_path / "c.pt", Code(tmp_path / "ran")
    torch.save({"kind": "brats_seg checkpoint", "format": 1, "weights": code}, path)
    refused(path, "a pickle with code")
    path.write_bytes(pickle.dumps(code))
    refused(path, "a pickle with code|not a checkpoint")
    assert not code.trace.exists()
    pickle.loads(path.read_bytes())
    assert code.trace.exists()  # so it would have been seen


def test_other_files_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    refused(path, "no such checkpoint")
    torch.save({"weights": {}}, path)
    refused(path, "not a checkpoint of brats_seg")
    torch.save({"kind": "brats_seg checkpoint", "format": 0}, path)
    refused(path, "version 0; this program reads version 1")
    torch.save({"kind": "brats_seg checkpoint", "format": 1, "weights": {}}, path)
    refused(path, "damaged")


def test_any_damage_inside_is_one_line(tmp_path: Path) -> None:
    """Bytes of the pickle changed and the archive's checksums with them: what comes back is refused or a
    checkpoint, never a traceback.
    """
    path, dice = tmp_path / "c.pt", random.Random(0)
    save_checkpoint(path, checkpoint())
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    (pickled,) = (name for name in files if name.endswith("data.pkl"))
    said = []
    for _ in range(60):
        damaged = bytearray(files[pickled])
        for _ in range(3):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, bytes(damaged) if name == pickled else content)
        try:
            load_checkpoint(path).parsed_config()
        except (InputError, UsageError) as error:
            said.append(str(error))
    assert len(said) > 30
    assert not any("\n" in line for line in said)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("weights", {"a": torch.zeros(2, dtype=torch.complex64)}),
        ("weights", {"a": torch.zeros(2).to_sparse()}),
        ("modalities", ("t1n", "t1n")),
        ("modalities", ()),
        ("classes", ("healthy", "edema", "edema")),
        ("classes", ("healthy",)),
        ("spacing_mm", (1.0, 1.0)),
        ("spacing_mm", (1.0, 1.0, float("nan"))),
        ("spacing_mm", (1.0, 1.0, 0.0)),
        ("normalization", {}),
        ("normalization", {"percentiles": [99.5, 0.5], "n4": False}),
        ("normalization", {"percentiles": ["0", "99"], "n4": False}),
        ("normalization", {"percentiles": [0.5, 99.5], "n4": "no"}),
        ("effective_prior", (0.5, 0.5)),
        ("natural_prior", (0.5, 0.1, 0.1, 0.1, float("inf"))),
        ("epoch", -1),
        ("fold", -2),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    torch.save(torch.load(path, weights_only=True) | {field: value}, path)
    refused(path, f"damaged, {field} is ")


@pytest.mark.parametrize(
    "config",
    [
        "- 1",
        "{",
        "a: &a 1",
        "[" * 5000,
        "training: 0x" + "f" * 5000,
        "x: !!python/object/apply:os.system [ls]",
    ],
)
def test_a_config_that_is_none_is_refused_when_loaded(tmp_path: Path, config: str) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, dataclasses.replace(checkpoint(), config=config))
    refused(path, "the config in the checkpoint is damaged")


@pytest.mark.parametrize(
    ("packing", "added", "said"),
    [
        (zipfile.ZIP_DEFLATED, 1_000_000, "its records claim more bytes than the file can have"),
        (zipfile.ZIP_LZMA, 0, "its records are packed in a way that torch does not read"),
    ],
)
def test_records_are_refused_before_they_are_unpacked_to_far_more(
    tmp_path: Path, packing: int, added: int, said: str
) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, content in files.items():
            archive.writestr(name, content + bytes(added))
    refused(path, said)


def test_a_deflated_checkpoint_is_smaller_and_reads_the_same(tmp_path: Path) -> None:
    """Weights in bf16 have bytes that repeat: their exponents."""
    weights = {"w": torch.randn(200, 300, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)}
    written = dataclasses.replace(checkpoint(), weights=weights)
    stored, deflated = tmp_path / "stored.pt", tmp_path / "deflated.pt"
    save_checkpoint(stored, written)
    save_checkpoint(deflated, written, packing="deflated")
    assert deflated.stat().st_size < 0.9 * stored.stat().st_size
    assert torch.equal(load_checkpoint(deflated).weights["w"], weights["w"])


@pytest.mark.parametrize(
    ("network", "said"),
    [
        ({"channels": [8192] * 6}, "has the shape "),
        ({"channels": [1 << 62, 1 << 62, 1]}, "do not fit network"),
        ({"num_res_units": 100_000}, "name more layers than the"),
        ({"channels": [4] * 10_000}, "name more layers than the"),
        ({"name": "swin_unetr", "channels": [120_000]}, "has the shape "),
    ],
)
def test_no_memory_is_asked_for_a_network_that_the_file_does_not_hold(
    tmp_path: Path, network: dict, said: str
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), limits[1]))
    try:
        with pytest.raises(InputError, match=said):
            restore_network(with_knobs(network=network), tmp_path, runtime=Runtime(torch.device("cpu")))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize(
    ("network", "n_dims"),
    [
        (Network(name="swin_unetr", channels=(12,)), 2),
        (Network(name="dynunet", channels=(4, 8, 16)), 3),
        (Network(name="attention_unet2d", channels=(4, 8)), 2),
        (Network(name="input_cascade", channels=(4, 8)), 2),
    ],
)
def test_every_kind_of_network_comes_back(tmp_path: Path, network: Network, n_dims: int) -> None:
    built = make_network(network, n_channels=4, n_classes=5, n_dims=n_dims)
    config = dump_config(Config(network=network, patch=Patch(size=(32,) * n_dims)))
    saved = dataclasses.replace(checkpoint(), weights=built.state_dict(), config=config)
    back = restore_network(saved, tmp_path, runtime=Runtime(torch.device("cpu")))
    assert all(torch.equal(value, built.state_dict()[name]) for name, value in back.state_dict().items())


@pytest.mark.parametrize(
    ("field", "value"), [("config", None), ("epoch", "3"), ("modalities", (1, 2)), ("weights", {"a": 1})]
)
def test_a_field_of_another_type_is_refused_by_name(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    torch.save(torch.load(path, weights_only=True) | {field: value}, path)
    refused(path, f"damaged, of the wrong type: {field}")


@pytest.mark.parametrize(
    "changes",
    [
        {"sampler": {"epoch": 0, "step": 0}},
        {"sampler": {"epoch": 2, "step": -1}},
        {"sampler": {"epoch": 2}},
        {"learner": 3},
        {"log": {"epochs": "none"}},
        {"loss_sum": "3.5"},
        {"best_epoch": 2.5},
        {"phase_began": 0},
    ],
)
def test_what_a_run_goes_on_from_is_checked_when_read(tmp_path: Path, changes: dict[str, object]) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint(resume=resume(**changes)))
    refused(path, "damaged, of the wrong type: resume")


def test_a_patch_that_no_memory_holds_is_refused_by_name(tmp_path: Path) -> None:
    tree = CONFIG.model_dump(mode="json")
    tree["patch"]["size"] = [100_000, 100_000]
    hostile = dataclasses.replace(checkpoint(), config=yaml.safe_dump(tree))
    with pytest.raises(UsageError, match="a patch has at most 67,108,864 voxels"):
        restore_network(hostile, tmp_path, runtime=Runtime(torch.device("cpu")))


def test_a_checkpoint_from_before_the_natural_prior_was_kept_has_none(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    tree = torch.load(path, weights_only=True)
    del tree["natural_prior"]
    torch.save(tree, path)
    assert load_checkpoint(path).natural_prior is None


def test_a_failed_write_keeps_the_good_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, checkpoint())
    before = path.read_bytes()

    def full(tree: object, part: Path) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="No space left on device; the checkpoint before it is kept"):
        save_checkpoint(path, checkpoint())
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = dataclasses.replace(checkpoint(), config=dump_config(Config()))
    with pytest.raises(InputError, match="do not fit network 'unet2d'"):
        restore_network(other, tmp_path, runtime=Runtime(torch.device("cpu")))


def test_other_modalities_or_classes_are_refused_by_name() -> None:
    check_same_data(checkpoint(), Path("c.pt"), modalities=MODALITIES, classes=CLASSES)
    with pytest.raises(InputError, match="modalities t1n, t1c, t2w, t2f; the data have t1c, t1n, t2w, t2f"):
        check_same_data(checkpoint(), Path("c.pt"), modalities=("t1c", "t1n", "t2w", "t2f"), classes=CLASSES)
    with pytest.raises(InputError, match="the data have healthy, edema"):
        check_same_data(checkpoint(), Path("c.pt"), modalities=MODALITIES, classes=("healthy", "edema"))


def with_knobs(**sections: dict[str, object]) -> Checkpoint:
    """A checkpoint whose config holds other knobs, known or not."""
    tree = yaml.safe_load(dump_config(CONFIG))
    for section, changes in sections.items():
        tree[section] = tree.get(section, {}) | changes
    return dataclasses.replace(checkpoint(), config=yaml.safe_dump(tree))


def test_knobs_of_another_version_do_not_keep_a_network_from_predicting() -> None:
    config = with_knobs(training={"turbo": True}, patch={"size": [32, 32]}, plans={"a": 1}).parsed_config()
    assert (config.network, config.patch.size, config.training) == (
        CONFIG.network,
        (32, 32),
        Config().training,
    )
    assert with_knobs(training={"epochs": 9}).parsed_config().training.epochs == 9
    with pytest.raises(UsageError, match=r"no knob 'network\.depth'"):
        with_knobs(network={"depth": 3}).parsed_config()


def test_a_knob_that_is_new_has_its_default_in_an_older_run() -> None:
    tree = yaml.safe_load(dump_config(CONFIG))
    del tree["phases"], tree["optimizer"]["decay"]
    older, cases = (
        dataclasses.replace(checkpoint(), config=yaml.safe_dump(tree)),
        (("A", "B"), ("C",), ("D",)),
    )
    check_same_run(older, Path("c.pt"), config=dump_config(CONFIG), bank="abc", cases=cases)
    with pytest.raises(UsageError, match=r"optimizer\.decay is 'everything'; the run has 'kernels'"):
        check_same_run(
            older,
            Path("c.pt"),
            config=dump_config(knobs(optimizer={"decay": "everything"})),
            bank="abc",
            cases=cases,
        )


def test_a_knob_that_is_left_out_is_named_with_its_default() -> None:
    cases = (("A", "B"), ("C",), ("D",))
    compiled = dump_config(knobs(training={"compile": "always", "cudnn_benchmark": "never"}))
    with pytest.raises(UsageError, match=r"training\.compile is 'always'; the run has 'never'"):
        check_same_run(checkpoint(), Path("c.pt"), config=compiled, bank="abc", cases=cases)
    run = dataclasses.replace(checkpoint(), config=compiled)
    with pytest.raises(UsageError, match=r"training\.compile is 'never'; the run has 'always'"):
        check_same_run(run, Path("c.pt"), config=dump_config(CONFIG), bank="abc", cases=cases)
    faster = dump_config(knobs(training={"cudnn_benchmark": "always"}))
    check_same_run(checkpoint(), Path("c.pt"), config=faster, bank="abc", cases=cases)


def test_going_on_needs_the_same_bank_cases_and_knobs() -> None:
    cases = (("A", "B"), ("C",), ("D",))
    path = Path("c.pt")
    check_same_run(checkpoint(), path, config=dump_config(CONFIG), bank="abc", cases=cases)
    check_same_run(
        checkpoint(), path, config=dump_config(knobs(training={"threads": 7})), bank="abc", cases=cases
    )
    with pytest.raises(InputError, match="digest abc; this one has xyz"):
        check_same_run(checkpoint(), path, config=dump_config(CONFIG), bank="xyz", cases=cases)
    with pytest.raises(InputError, match="the train cases of the run were A, B; now they are A;"):
        check_same_run(
            checkpoint(), path, config=dump_config(CONFIG), bank="abc", cases=(("A",), ("C",), ("D",))
        )
    with pytest.raises(UsageError, match=r"training.epochs is 9; the run has 50"):
        check_same_run(
            checkpoint(), path, config=dump_config(knobs(training={"epochs": 9})), bank="abc", cases=cases
        )


def test_a_layer_whose_kernel_does_not_fit_keeps_its_own_bias_too() -> None:
    saved = checkpoint()
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1))
    given = {name: torch.full_like(weight, 7) for name, weight in network.state_dict().items()}
    given["0.weight"] = torch.full((2, 1, 3, 3, 3), 7.0)
    own_bias = network[0].bias.clone()
    assert take_weights(network, dataclasses.replace(saved, weights=given)) == ("0",)
    assert torch.equal(network[0].bias, own_bias)
    assert (network[1].weight == 7).all()
    assert (network[1].bias == 7).all()


def test_stages_of_a_cascade_that_see_other_slices_around_are_refused() -> None:
    detector = with_knobs(task={"classes": "healthy_or_tumor"})
    classifier = with_knobs(task={"classes": "tumor"}, patch={"slices_around": 1})
    with pytest.raises(
        UsageError, match=r"^b: has patch.slices_around 1, a 0; the stages of a cascade see the same slices"
    ):
        compose_checkpoints(
            TrainedNetwork(Path("a"), detector, ""), TrainedNetwork(Path("b"), classifier, "")
        )
