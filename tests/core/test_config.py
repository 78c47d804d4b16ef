"""Every config that comes with the package loads; a wrong knob is named with the nearest right one."""

from pathlib import Path

import pytest

from brats_seg.core.augmentation import Augment
from brats_seg.core.config import Config, load_config, parse_config
from brats_seg.core.errors import UsageError
from brats_seg.core.settings import config_names, dump_config


@pytest.mark.parametrize("name", config_names())
def test_every_packaged_config_loads(name: str) -> None:
    assert isinstance(load_config(name), Config)


def test_the_main_configs_travel_with_the_package() -> None:
    assert {"unet2d", "unet2d_cpu", "demo"} <= set(config_names())


def test_unet2d_is_the_published_budget() -> None:
    config = load_config("unet2d")
    assert (config.training.epochs, config.training.steps, config.training.batch_size, config.patch.size) == (
        50,
        1000,
        120,
        (64, 64),
    )


def test_a_resolved_copy_reads_back_as_the_same_config(tmp_path) -> None:
    config = load_config("unet2d", overrides=("sampler.kind=hard", "hard.threshold=0.5"))
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "c.yaml") == config


def test_scientific_notation_without_a_dot_is_a_number() -> None:
    assert load_config(overrides=("optimizer.lr=1e-3",)).optimizer.lr == 0.001


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampler.knd=hard", "no knob 'sampler.knd'; did you mean 'sampler.kind'?"),
        ("sampler.kind=blanced", "sampler.kind"),
        ("training.epochs=0", "training.epochs: Input should be greater than 0 (got 0)"),
        ("sampler", "write section.key=value"),
        ("hard.threshold=1.5", "hard.threshold"),
        ("optimizer.lr=.inf", "optimizer.lr: Input should be a finite number (got inf)"),
        ("augment.shift=[.nan, 1]", "augment.shift.0: Input should be a finite number"),
        ("augment.gain=[2, 1]", "augment.gain: the lower end of a range must come first (got [2, 1])"),
        ("augment.scale=[0, 1]", "augment.scale.0: Input should be greater than 0"),
        ("augment.noise_sd=[-1, 0]", "augment.noise_sd.0"),
        ("sampler={kind: hard, kind: random}", "'kind' is given twice"),
        (f"sampler={'[' * 2000}", "not YAML"),
        (
            "validation.of=2021-13-45",
            "--set validation.of=2021-13-45: the value is not YAML: month must be in 1..12",
        ),
        ("training.epochs=0b_", "--set training.epochs=0b_: the value is not YAML: invalid literal"),
        ("training.epochs=!!bool x", "--set training.epochs=!!bool x: the value is not YAML"),
        ("training.epochs=!!int ''", "--set training.epochs=!!int '': the value is not YAML"),
        ("training.epochs=!!timestamp x", "--set training.epochs=!!timestamp x: the value is not YAML"),
        (f"optimizer.lr={'1:' * 200}1.5", "the value is not YAML"),
        ("validation={metric: last, patience: 3}", "choose another metric or no patience"),
        ("loss.weights_from=0.5", "loss: weights_from 0.5 delays class weights, but class_weights is 'none'"),
        (
            "sampler.imbalance_ratio=10",
            "sampler: kind 'balanced' has no imbalance_ratio; use kind 'oversample' or 'undersample'",
        ),
        (
            "loss.tau=2",
            "loss: tau 2 is the strength of the logit adjustment; it is only for kind 'logit_adjusted'",
        ),
        ("augment=stong", "config: augment: 'stong' is not a preset; the presets are none, light, strong"),
        (
            "augment={preset: heavy}",
            "config: augment: 'heavy' is not a preset; the presets are none, light, strong",
        ),
        ("augment=3", "config: augment: '3' is not a preset; the presets are none, light, strong (got 3)"),
        (
            "loss.unified_gamma=0.2",
            "kind 'cross_entropy' has no unified_weight, unified_delta and unified_gamma; they are only for "
            "'unified_focal'",
        ),
        (
            "loss={kind: focal, by_lesion: blob}",
            "by_lesion 'blob' is added to kind 'dice_cross_entropy', not to 'focal'",
        ),
        (
            "loss.by_lesion_weight=2",
            "by_lesion_weight is only for by_lesion 'blob' or 'components'",
        ),
        (
            "loss.dice=batch",
            "loss: kind 'cross_entropy' has no Dice term; dice 'batch' is only for kind 'dice_cross_entropy' "
            "or 'region'",
        ),
        ("optimizer.schedule=steps", "optimizer: schedule 'steps' needs optimizer.drops"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(overrides=(override,))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "sampler",
    [
        {"kind": "ratio", "shares": {"healthy": 0.5, "edema": 0.4}},
        {"kind": "ratio"},
        {"kind": "balanced", "shares": {"healthy": 1.0}},
        {"kind": "ratio", "shares": {"healthy": -0.1, "edema": 1.1}},
        {"kind": "ratio", "shares": {"healthy": 1.0}, "healthy_share": 0.5},
    ],
)
def test_shares_that_cannot_be_meant_are_refused(sampler: dict) -> None:
    with pytest.raises(UsageError, match="sampler"):
        parse_config({"sampler": sampler})


@pytest.mark.parametrize(
    "override",
    [
        "patch.size=[" + "[" * 50 + "1, " * 5000 + "1" + "]" * 50 + "]",
        "training.epochs=0x" + "f" * 9000,
        "loss.kind=" + "x" * 9000,
        "patch={" + ", ".join(f"knob{i}: 1" for i in range(3000)) + "}",
        "x" * 9000 + "=1",
        "x." * 9000 + "x=1",
    ],
)
def test_an_error_is_one_short_line_whatever_the_value(override: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(overrides=(override,))
    assert len(str(caught.value)) <= 400
    assert "\n" not in str(caught.value)


def test_anchors_are_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("augment: &a {flip: 0.5}\nloss: *a\n")
    with pytest.raises(UsageError, match=r"c\.yaml: not YAML: anchors .* are not read; write the value out"):
        load_config(tmp_path / "c.yaml")


# Presets of augmentation


@pytest.mark.parametrize("name", ["none", "light", "strong"])
def test_a_preset_is_one_word_and_its_resolved_copy_has_the_numbers(name: str, tmp_path: Path) -> None:
    config = load_config(overrides=(f"augment={name}",))
    (tmp_path / "c.yaml").write_text(dump_config(config))
    assert "preset" not in dump_config(config)
    assert load_config(tmp_path / "c.yaml") == config == parse_config({"augment": {"preset": name}})


def test_presets_are_what_they_are_called() -> None:
    none, light, strong = (parse_config({"augment": name}).augment for name in ("none", "light", "strong"))
    assert none.model_dump() == Augment(flip=0).model_dump()
    assert light == load_config("unet2d_cpu").augment
    default = Augment()
    on = {name for name in Augment.model_fields if getattr(strong, name) != getattr(default, name)}
    assert on == set(Augment.model_fields) - {"flip", "intensity_probability", "modality_dropout"}


def test_knobs_are_laid_over_a_preset(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("augment: {preset: strong, noise_sd: [0, 0.1]}\n")
    strong = parse_config({"augment": "strong"}).augment
    changed = strong.model_copy(update={"noise_sd": (0.0, 0.1)})
    assert load_config(tmp_path / "c.yaml").augment == changed
    assert load_config(overrides=("augment=strong", "augment.noise_sd=[0, 0.1]")).augment == changed


def test_a_preset_in_place_of_the_knobs_of_a_file() -> None:
    assert load_config("demo", overrides=("augment=none",)).augment == Augment(flip=0)


def test_a_preset_that_is_set_replaces_the_knobs_of_a_file() -> None:
    strong = parse_config({"augment": "strong"}).augment
    assert load_config("unet2d_cpu", overrides=("augment.preset=strong",)).augment == strong
    changed = load_config("unet2d_cpu", overrides=("augment.preset=strong", "augment.flip=0")).augment
    assert changed == strong.model_copy(update={"flip": 0.0})


def test_measured_statistics_go_with_the_last_weights() -> None:
    with pytest.raises(
        UsageError,
        match=r"^config: training.norm_statistics 'measured' .* it needs validation.metric 'last'",
    ):
        load_config(overrides=("training.norm_statistics=measured",))
    assert (
        load_config(
            overrides=("training.norm_statistics=measured", "validation.metric=last")
        ).validation.metric
        == "last"
    )


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(UsageError, match="unet2d_cpu"):
        load_config("unet2d_cup")


def test_a_section_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "sampler: {kind: hard}\npatch: {size: [32, 32]}\nsampler: {kind: random}\n"
    )
    with pytest.raises(UsageError, match=r"c\.yaml: .*'sampler' is given twice.*line 3"):
        load_config(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    "text",
    [
        "[" * 2000,
        "a: [",
        "- 1\n- 2",
        "text",
        "\x00",
        "a: &a [*a]",
        "1: {2: 3}",
        "sampler: [1]",
        "a: 0b_",
        "a: 2021-13-45",
    ],
)
def test_hostile_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError) as caught:
        load_config(tmp_path / "c.yaml")
    assert "\n" not in str(caught.value)


def test_a_misspelled_config_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        UsageError, match="no config with this name, did you mean 'unet2d_cpu'; the names are "
    ) as refused:
        load_config("unet2d_cp")
    assert str(refused.value).endswith(f"; the names are {', '.join(config_names())}")


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ({"cases": "next_fold", "fraction": 0.3}, "cases 'next_fold' does not use fraction"),
        ({"cases": "none"}, "cases 'none' leaves no case for metric 'mean_dice'"),
    ],
)
def test_knobs_of_the_inner_split_that_do_not_fit(validation: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parse_config({"validation": validation})


def test_a_config_that_was_renamed_is_found_by_its_old_name_and_one_line_says_the_new(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert load_config("best") == load_config("drift_dice")
    assert caplog.messages == ["--config best: this config is now called drift_dice"]
