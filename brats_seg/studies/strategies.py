"""The config of an experiment -> the strategies that it compares, with all their knobs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from brats_seg.core.config import Config, load_config, parse_config
from brats_seg.core.errors import UsageError, refuse
from brats_seg.core.settings import Section, lay_over, load_settings, parse_settings
from brats_seg.evaluation.run_rows import Variant
from brats_seg.imbalance.priors import LOSSES_WITH_A_PRIOR
from brats_seg.training.remedies import knobs_of

TUNED = "tuned"
_OF_A_STRATEGY = ("correct_priors", "stages", "remedy")
"""Keys that a strategy may have in addition to the knobs of a training config."""

Name = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]
"""The name of a strategy or a cohort, and of its folder."""
Strength = Annotated[float, Field(ge=0, le=1)] | Literal["tuned"]


def _each_once(values: tuple[Any, ...]) -> tuple[Any, ...]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value} is given twice")
    return values


class Predict(Section):
    """How a trained network is used. Each strength of prior correction is a separate variant that needs no
    other training.

    "tuned" is the strength that `brats-seg tune` finds on the inner cases of the run. `cases` "inner" scores
    the inner cases instead of the held-out fold, for a search that must not use the held-out fold. A strength
    that was tuned on the inner cases cannot be scored on them. `looks` is how often each run is scored, at
    equally spaced epochs up to its end; 0 scores only the end.
    """

    correct_priors: Annotated[tuple[Strength, ...], AfterValidator(_each_once), Field(min_length=1)] = (0.0,)
    cases: Literal["held_out", "inner"] = "held_out"
    looks: Annotated[int, Field(ge=0)] = 0


class Phantoms(Section):
    """A cohort of phantoms that the experiment builds itself. `traits` are the values of
    `phantoms.tumor.Traits`.
    """

    cases: Annotated[int, Field(ge=2)] = 24
    layout: str = "brats2013"
    size: Annotated[int, Field(ge=48)] = 192
    seed: Annotated[int, Field(ge=0)] = 1
    traits: dict[str, float] = Field(default_factory=dict)


class ExperimentConfig(Section):
    """Strategies x folds x seeds.

    Attributes:
        like: name or file of a parent experiment. Knobs that are not given here have the value of the parent.
            `every` is merged into the `every` of the parent.
        title: title of the table and the page; by default the name of the config file.
        base: the training config that all strategies share: a name, a file, or a mapping.
        every: knobs that change `base` for all strategies.
        strategies: by name, the knobs (`section.key: value`, or nested) of each strategy. Three more keys are
            allowed: `correct_priors` replaces that of `predict`, `stages` (two mappings of knobs) makes the
            strategy a cascade of two runs, and `remedy` names a remedy (`training.remedies`), whose knobs the
            given knobs change.
        folds: folds that are held out in turn; None for all folds of the bank.
        seeds: seeds of the training.
        predict: how the trained networks are used.
        against: label of the variant to compare the others with; None for the first.
        pictures: labels of the variants shown side by side; None for the first five.
        phantoms: cohorts by name, used instead of one bank. The cohorts and their banks are built in the
            folder BANK.
    """

    like: str | None = None
    title: str = "Experiment"
    base: str | dict[str, Any] = Field(default_factory=dict)
    every: dict[str, Any] = Field(default_factory=dict)
    strategies: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    folds: (
        Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_each_once), Field(min_length=1)]
        | None
    ) = None
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(_each_once), Field(min_length=1)
    ] = (0,)
    predict: Predict = Predict()
    against: str | None = None
    pictures: tuple[str, ...] | None = None
    phantoms: dict[Name, Phantoms] = Field(default_factory=dict)


@dataclass(frozen=True)
class Strategy:
    """The configs that a strategy trains (one run, or the two stages of a cascade), and the strengths of
    prior correction for its predictions.
    """

    name: str
    configs: tuple[Config, ...]
    correct_priors: tuple[str, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of its variants in tables."""
        return tuple(Variant("", self.name, strength).label for strength in self.correct_priors)

    def picked_on(self, *, cases: Literal["held_out", "inner"]) -> dict[tuple[str, str], str]:
        """By name and strength, which scores chose the weights or the strength: "test" (scores of the scored
        `cases`), "validation" (scores of inner cases that are not scored), or "" (no scores).
        """
        by_epoch = any(config.validation.metric != "last" for config in self.configs)
        on = "test" if cases == "inner" else "validation"
        return {(self.name, s): on if by_epoch or s == TUNED else "" for s in self.correct_priors}


def load_experiment(source: str | Path, *, overrides: tuple[str, ...] = ()) -> ExperimentConfig:
    """Read the config of an experiment from a file, or by the name of a config of the package.

    Args:
        source: file or name.
        overrides: `section.key=value` each; they change the config after its parent is applied.

    Raises:
        UsageError: as `config.load_settings`, no strategy is given, or an experiment is its own parent.
    """
    config = _with_what_it_is_like(source, below=())
    if overrides:
        tree = config.model_dump(mode="json", exclude_unset=True)
        for override in overrides:
            lay_over(tree, override)
        config = parse_settings(ExperimentConfig, tree)
    if config.like is not None:
        raise UsageError(f"--set like={config.like}: name that experiment with --config instead")
    if "title" not in config.model_fields_set:
        config = config.model_copy(update={"title": Path(source).stem})
    if not config.strategies:
        raise UsageError(
            f"--config {source}: an experiment without strategies; give one or more, or `like` another "
            "experiment"
        )
    return config


def _with_what_it_is_like(source: str | Path, *, below: tuple[str, ...]) -> ExperimentConfig:
    """The config of a file, merged into the config of its parent (`like`). `below` are the experiments on the
    way to this one.
    """
    config = load_settings(ExperimentConfig, source, shelf="experiments")
    if config.like is None:
        return config
    if config.like in (*below, str(source)):
        raise UsageError(
            f"--config {source}: like {config.like}, which is like this one; name an experiment that stands "
            "by itself"
        )
    parent = _with_what_it_is_like(config.like, below=(*below, str(source)))
    given = {name: getattr(config, name) for name in config.model_fields_set - {"like"}}
    return parent.model_copy(update={**given, "every": laid_over(parent.every, config.every)})


def make_strategies(config: ExperimentConfig, *, only: Sequence[str] = ()) -> tuple[Strategy, ...]:
    """The strategies with all their knobs.

    Raises:
        UsageError: a name in `only` is not a strategy, a knob does not exist, prior correction is asked for a
            loss without a prior, or no variant has the label in `against` or `pictures`.
    """
    unknown = [name for name in only if name not in config.strategies]
    if unknown:
        raise UsageError(
            f"--only {unknown[0]}: no strategy has this name; the strategies are "
            f"{', '.join(config.strategies)}"
        )
    base = load_config(config.base) if isinstance(config.base, str) else parse_config(config.base)
    tree = laid_over(base.model_dump(mode="json"), {**config.every, "training.threads": 1})
    strategies = tuple(_strategy(name, tree, changes, config) for name, changes in config.strategies.items())
    for one, other in combinations(strategies, 2):
        if (one.configs, one.correct_priors) == (other.configs, other.correct_priors):
            raise UsageError(
                f"strategy '{other.name}': is the same computation as '{one.name}'; name it once"
            )
    named = [label for strategy in strategies for label in strategy.labels]
    for knob, labels in (
        ("against", () if config.against is None else (config.against,)),
        ("pictures", config.pictures or ()),
    ):
        absent = [label for label in labels if label not in named]
        if absent:
            raise UsageError(f"{knob}: no variant '{absent[0]}'; there are {', '.join(named)}")
    return tuple(strategy for strategy in strategies if not only or strategy.name in only)


def _strategy(
    name: str, base: dict[str, Any], changes: Mapping[str, Any], config: ExperimentConfig
) -> Strategy:
    knobs = {key: value for key, value in changes.items() if key not in _OF_A_STRATEGY}
    stages = changes.get("stages")
    if stages is not None and not (
        isinstance(stages, list) and len(stages) == 2 and all(isinstance(s, dict) for s in stages)
    ):
        raise UsageError(
            f"strategy '{name}': stages are two mappings of knobs: of the detector, then of the classifier"
        )
    try:
        predict = parse_settings(
            Predict, {"correct_priors": changes.get("correct_priors", config.predict.correct_priors)}
        )
        if "remedy" in changes:
            knobs = laid_over(knobs_of(changes["remedy"]), knobs)
        configs = tuple(parse_config(laid_over(laid_over(base, knobs), stage)) for stage in (stages or [{}]))
    except UsageError as error:
        raise UsageError(f"strategy '{name}': {error}") from None
    if TUNED in predict.correct_priors and config.predict.cases == "inner":
        raise UsageError(
            f"strategy '{name}': correct_priors 'tuned' is found on the inner cases that predict.cases "
            "'inner' scores; give strengths"
        )
    for one in configs:
        refuse(
            (
                one.validation.cases == "none"
                and (config.predict.cases == "inner" or TUNED in predict.correct_priors),
                f"strategy '{name}': validation.cases 'none' leaves no inner case to score or to tune on; "
                "take 'fraction' or 'next_fold'",
            ),
            (
                predict.correct_priors != (0.0,)
                and (one.loss.kind not in LOSSES_WITH_A_PRIOR or one.loss.outside == "ignore"),
                f"strategy '{name}': a network trained with loss.kind '{one.loss.kind}' and loss.outside "
                f"'{one.loss.outside}' has no "
                "prior that is known; leave out its correct_priors",
            ),
        )
    strategy = Strategy(
        name, configs, tuple(s if isinstance(s, str) else f"{s:g}" for s in predict.correct_priors)
    )
    _check_looks(strategy, config.predict.looks)
    return strategy


def _check_looks(strategy: Strategy, n_looks: int) -> None:
    """Refuse looks for runs whose weights before the end are not comparable with the weights at the end."""
    if not n_looks:
        return
    one, *others = strategy.configs
    problems = {
        "stages: a cascade is two runs": bool(others),
        "phases.two_phase: the second phase is another training": one.phases.two_phase,
        f"validation.metric '{one.validation.metric}' chooses an epoch; take 'last'": (
            one.validation.metric != "last"
        ),
        "training.norm_statistics 'measured': they are measured only at the end": (
            one.training.norm_statistics == "measured"
        ),
        "correct_priors 'tuned': the strength is found only at the end": TUNED in strategy.correct_priors,
        f"it has {one.training.epochs} epochs: give as many looks at most": n_looks > one.training.epochs,
    }
    for problem, is_there in problems.items():
        if is_there:
            raise UsageError(f"predict.looks {n_looks}: strategy '{strategy.name}': {problem}")


def look_epochs(n_epochs: int, n_looks: int) -> tuple[int, ...]:
    """The epochs after which a run of `n_epochs` is scored: equally spaced, rounded up, including the last
    epoch.
    """
    return tuple(-(-n_epochs * look // n_looks) for look in range(1, n_looks + 1))


def laid_over(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with some values changed. Keys are `section.key`, or sections that contain
    mappings.

    A preset of augmentation replaces the whole section. Knobs that are given with the preset or after it
    change its values.
    """
    changed = dict(tree)
    for path, value in changes.items():
        section, _, rest = str(path).partition(".")
        within = changed.get(section)
        if rest:
            value = {rest: value}
        if section == "augment":
            within, value = ({"preset": part} if isinstance(part, str) else part for part in (within, value))
            within = None if isinstance(value, dict) and "preset" in value else within
        changed[section] = (
            laid_over(within, value) if isinstance(within, dict) and isinstance(value, dict) else value
        )
    return changed
