"""Networks that are part of the package: their names, checkpoints and model cards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from brats_seg.core.errors import InputError, UsageError
from brats_seg.core.files import BEST, read_model, read_text, write_text
from brats_seg.core.settings import Section

SHELF = Path(__file__).parents[1] / "starter"
"""The folder with one folder for each network."""
CARD, FACTS = "model_card.md", "model_card.json"
_TITLE = "# Model card: "


class CardScore(Section):
    """A mean score over cases that the networks were not trained on.

    Attributes:
        region: whole, core or active.
        dice: mean Dice over `n` cases.
        low, high: 95 % interval of the mean.
    """

    region: str
    dice: Annotated[float, Field(ge=0, le=1)]
    n: Annotated[int, Field(gt=0)]
    low: Annotated[float, Field(ge=0, le=1)]
    high: Annotated[float, Field(ge=0, le=1)]


class CardWords(Section):
    """The text that the person who packages a network writes about it.

    Attributes:
        data: the training data.
        recipe: the training recipe.
        scored_on: the cases of the scores, how they were held out, and the convention of the scores.
        scores: one score for each region.
        not_for: uses for which the network is not meant.
        license: license of the weights.
    """

    data: str
    recipe: str
    scored_on: str
    scores: tuple[CardScore, ...]
    not_for: str
    license: str


class PackedNetwork(Section):
    """One checkpoint of a packaged network."""

    file: str
    sha256: str
    network: str
    n_parameters: int
    epoch: int


class Card(CardWords):
    """All facts about a packaged network: the text of the author, and values from the checkpoints."""

    name: str
    modalities: tuple[str, ...]
    classes: tuple[str, ...]
    spacing_mm: tuple[float, ...]
    networks: tuple[PackedNetwork, ...]
    tuned: str | None = None

    def summary(self) -> str:
        """A few lines for a list of networks."""
        scores = ", ".join(
            f"{s.region} {s.dice:.3f} ({s.low:.3f} to {s.high:.3f}, n {s.n})" for s in self.scores
        )
        lines = (
            f"data: {self.data}",
            f"recipe: {self.recipe}",
            f"mean Dice: {scores}",
            f"scored on: {self.scored_on}",
        )
        return "\n  ".join((self.name, *lines, f"not for: {self.not_for}"))

    def text(self) -> str:
        """The card in Markdown."""
        spacing = " x ".join(f"{mm:g}" for mm in self.spacing_mm)
        rows = [f"| {s.region} | {s.dice:.3f} | {s.low:.3f} to {s.high:.3f} | {s.n} |" for s in self.scores]
        files = [
            f"- `{n.file}`: {n.network}, {n.n_parameters:,} parameters, epoch {n.epoch}, SHA-256 `{n.sha256}`"
            for n in self.networks
        ]
        averaged = f" The mean of {len(self.networks)} networks." if len(self.networks) > 1 else ""
        tuned = (
            f"{self.tuned} `--untuned` leaves these settings out."
            if self.tuned
            else "None: `predict` uses the networks as they are."
        )
        return "\n".join(
            [
                f"{_TITLE}{self.name}",
                "",
                f"**Input.** {', '.join(self.modalities)}, without skull, on a background of 0, voxels of "
                f"{spacing} mm (Z, Y, X).",
                f"**Output.** {', '.join(self.classes)}.{averaged}",
                "",
                f"**Data.** {self.data}",
                "",
                f"**Recipe.** {self.recipe}",
                "",
                f"**Scores.** {self.scored_on}",
                "",
                "| region | mean Dice | 95 % interval | n |",
                "|---|---|---|---|",
                *rows,
                "",
                f"**Settings used by default.** {tuned}",
                "",
                f"**Not for.** {self.not_for}",
                "",
                f"**License of the weights.** {self.license}",
                "",
                *files,
                "",
            ]
        )


def packaged_names() -> tuple[str, ...]:
    """Names of the networks that are in this package."""
    return tuple(sorted(path.parent.name for path in SHELF.glob(f"*/{FACTS}")))


def read_card(folder: Path) -> Card:
    """The card of a packaged network. Raises `InputError` if the card is damaged."""
    return read_model(Card, folder / FACTS, mend="install the package again")


def find_run(run: str | Path) -> Path:
    """The folder of a run, or of the packaged network with this name. An existing folder is preferred.

    Raises:
        UsageError: neither exists. The message lists the names of the packaged networks.
    """
    return Path(run) if Path(run).is_dir() else find_packaged(str(run), also="no such folder, and ")


def find_packaged(name: str, *, also: str = "") -> Path:
    """The folder of the packaged network with this name. Raises `UsageError` with the existing names."""
    names = packaged_names()
    if name in names:
        return SHELF / name
    choices = (
        f"the networks of the package are {', '.join(names)}" if names else "this package has no network"
    )
    raise UsageError(f"{name}: {also}{choices}; a trained run is given by its folder")


def is_packaged(folder: Path) -> bool:
    """Whether a folder has the form of a packaged network: checkpoints and a card."""
    return (folder / FACTS).is_file()


def checkpoints_of(folder: Path) -> tuple[Path, ...]:
    """The checkpoints to average: the best checkpoint of a run, or all checkpoints of a packaged network.

    Raises:
        InputError: a packaged network has no checkpoint.
    """
    if not is_packaged(folder):
        return (folder / BEST,)
    paths = tuple(sorted(folder.glob("*.pt")))
    if not paths:
        raise InputError(f"{folder}: holds a model card but no checkpoint; install the package again")
    return paths


def write_cards(out: Path, folders: Sequence[Path]) -> None:
    """Write `OUT/model_card.md` with the cards of the packaged networks among these folders. Without a
    packaged network, delete an older card.
    """
    texts = [read_text(folder / CARD) for folder in folders if is_packaged(folder)]
    path = out / CARD
    if texts:
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, "\n".join(texts))
    elif path.is_file() and read_text(path).startswith(_TITLE):
        path.unlink()
