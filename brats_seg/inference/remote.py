"""Cases of `predict` on the workers of a cluster; each worker keeps the networks between cases."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from brats_seg.core.dask_engine import Cluster
from brats_seg.core.engine import map_in_order
from brats_seg.core.errors import InputError
from brats_seg.inference.loaded import load_for_prediction
from brats_seg.inference.options import PredictOptions
from brats_seg.inference.outcome import Prediction
from brats_seg.inference.predict import describe_result, segment_case, settings_digest
from brats_seg.inference.segmenter import Segmenter
from brats_seg.models.trained import open_run
from brats_seg.scans.case import Case, Problem


@dataclass(frozen=True)
class _Recipe:
    """The name or folder of each run, its digest, and the options to load and to use them with."""

    runs: tuple[tuple[str | Path, str], ...]
    options: PredictOptions


class OnCluster:
    """Segments the unfinished cases of `predict.predict_cases` on the workers of a cluster. A case that ends
    three workers is reported as a problem; the others are segmented.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        runs: Sequence[tuple[str | Path, str]],
        options: PredictOptions,
        out: Path,
    ) -> None:
        """Keep what a worker needs.

        Args:
            cluster: whose workers segment.
            runs: folder, or name of a packaged network, and digest of each run. A worker looks for a packaged
                network in the package installed on its own machine.
            options: as in `predict`.
            out: folder of the label maps.
        """
        self._cluster, self._recipe, self._out = cluster, _Recipe(tuple(runs), options), out

    def settings(self) -> str:
        """`predict.settings_digest` on a worker.

        Raises:
            InputError: loading the networks ended three workers.
        """
        (outcome,) = self._cluster.map_unordered(_settings, [self._recipe])
        if outcome.died:
            raise InputError(f"loading the networks {outcome.error}; start workers with more memory")
        return outcome.unwrap()

    def segment(self, cases: Sequence[Case]) -> list[Prediction | Problem]:
        """The outcome of each case, in the order of the cases."""
        return map_in_order(
            partial(_segment, self._recipe, self._out),
            cases,
            threads=1,
            label="segmenting",
            on_death=_problem,
            line=describe_result,
            cluster=self._cluster,
        )


def _settings(recipe: _Recipe) -> str:
    segmenters, options = _load(recipe)
    return settings_digest(segmenters, options=options)


def _segment(recipe: _Recipe, out: Path, case: Case) -> Prediction | Problem:
    segmenters, options = _load(recipe)
    return segment_case(segmenters, case, out=out, options=options)


@lru_cache(maxsize=1)
def _load(recipe: _Recipe) -> tuple[tuple[Segmenter, ...], PredictOptions]:
    runs = [open_run(name) for name, _ in recipe.runs]
    for run, (name, digest) in zip(runs, recipe.runs, strict=True):
        if run.digest != digest:
            raise InputError(f"{name}: a worker has another network than this command; give the same one")
    return load_for_prediction(runs, recipe.options)


def _problem(case: Case, error: BaseException) -> Problem:
    return Problem(
        "error", case.id, str(case.folder), str(error), "workers with more memory, or another scan"
    )
