"""Methods that learn from a few images of a class: method x shots -> accuracy on classes that were not in the
training.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from brats_seg.classification.bench import Purpose, study_seed
from brats_seg.classification.few_shot import FewShot
from brats_seg.classification.settings import FewShotSettings, StudySettings
from brats_seg.core.statistics import describe
from brats_seg.core.tables import markdown_table
from brats_seg.models.checkpoint import library_versions
from brats_seg.studies.grid import Job
from brats_seg.studies.image_cells import runtime_once
from brats_seg.studies.lines import Series, lines_figure, method_look, method_name
from brats_seg.studies.novelty import images_once, percent_text
from brats_seg.studies.store import Row


@dataclass(frozen=True)
class FewShotJob(Job):
    """Everything that determines a row: a method, the number of shown images of a class, and a repeat."""

    method: str
    shots: int
    repeat: int

    @property
    def key(self) -> str:
        """The name of the job for people."""
        return f"{self.method}, {self.shots} shots, repeat {self.repeat}"

    def tree(self) -> dict[str, Any]:
        """Everything that determines the row, as plain values."""
        return {"method": self.method, "shots": self.shots, "repeat": self.repeat}


def few_shot_jobs(settings: FewShotSettings) -> tuple[FewShotJob, ...]:
    """Every job of a study; the first repeat comes first."""
    return tuple(
        FewShotJob(method, shots, repeat)
        for repeat in range(settings.repeats)
        for shots in settings.shots
        for method in settings.methods
    )


def shorten_few_shot(settings: FewShotSettings, share: float) -> FewShotSettings:
    """The same study with only a share of the iterations and episodes. A plan measures its time."""
    iterations, memory, episodes = (
        max(1, round(share * n))
        for n in (settings.training.iterations, settings.memory_iterations, settings.episodes)
    )
    training = settings.training.model_copy(update={"iterations": iterations})
    return settings.model_copy(
        update={"training": training, "memory_iterations": memory, "episodes": episodes}
    )


def few_shot_size(settings: FewShotSettings, job: FewShotJob) -> int:
    """Number of images of a class in a step, if the training time is proportional to this number; else 1."""
    is_episodic = job.method in ("prototypical", "matching", "memory")
    return job.shots + settings.train_queries if is_episodic else 1


def few_shot_rows(job: FewShotJob, *, settings: FewShotSettings, folder: str, device: str) -> list[Row]:
    """The row of a job.

    Args:
        job: the network.
        settings: settings of the study.
        folder: folder of the images.
        device: "auto", "cpu", "cuda" or "cuda:N".
    """
    start, runtime = time.perf_counter(), runtime_once(device)
    # the episodes of a repeat are the same for all methods and shots
    seed = study_seed(StudySettings(training=settings.training), Purpose.SET, job.repeat)
    splits = images_once(settings.images.model_dump_json(), folder)
    accuracies = FewShot(settings, splits, job.shots, seed, runtime).accuracies(job.method)
    over = describe(accuracies, list(map(str, range(len(accuracies)))))
    return [{
        "images": settings.images.name, "method": job.method, "shots": job.shots, "ways": settings.ways,
        "repeat": job.repeat, "accuracy": over["mean"], "interval95": over["interval95"], "n": over["n"],
        "of": "draws" if job.method == "oversample" else "episodes",
        "seconds": round(time.perf_counter() - start, 2), "seed": seed, "versions": library_versions(),
    }]  # fmt: skip


def few_shot_table(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The accuracy of each method and number of shots, as rows and as lines of Markdown."""
    kept = ("images", "method", "shots", "ways", "repeat", "accuracy", "interval95", "n", "of", "seconds")
    means = [{name: row[name] for name in kept} for row in rows]
    shots = sorted({row["shots"] for row in rows})
    repeats = sorted({row["repeat"] for row in rows})
    cells = {(row["method"], row["repeat"], row["shots"]): row for row in rows}
    lines = [
        [
            method_name(method),
            repeat,
            *(percent_text(cells.get((method, repeat, n)), of="accuracy") for n in shots),
        ]
        for method in dict.fromkeys(row["method"] for row in rows)
        for repeat in repeats
    ]
    head = ("method", "repeat", *(f"{n} shown" for n in shots))
    ways = rows[0]["ways"]
    text = [
        f"# Accuracy, %, among {ways} classes that were never seen (95 % interval over episodes or draws)",
        "",
        *markdown_table(head, lines),
        "",
        f"Chance is {100 / ways:.1f} %.",
    ]
    return means, text


def few_shot_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The accuracy over the number of shown images, one line for each method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = [
        Series(
            method_name(method),
            method_look(method, methods),
            {
                float(n): [
                    100 * row["accuracy"] for row in rows if (row["method"], row["shots"]) == (method, n)
                ]
                for n in sorted({row["shots"] for row in rows if row["method"] == method})
            },
        )
        for method in methods
    ]
    figure = lines_figure(
        [(f"{rows[0]['ways']} unseen classes", lines)], x_label="shown images a class", score="accuracy"
    )
    return {} if figure is None else {"few_shot": figure}
