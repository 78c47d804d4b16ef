"""The viewer's script, from an installed package."""

import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from urllib.parse import unquote

from brats_seg.core.errors import UsageError

PACKAGE = "ipyniivue"
"""The package of the extra `view` whose bundle holds NiiVue."""
_LITERAL = re.compile(r"[\"`]([\w.!~*'()%-]{500000,})[\"`]", re.ASCII)


@dataclass(frozen=True)
class Bundle:
    """The installed NiiVue.

    Attributes:
        module: source of a self-contained JavaScript module that exports `Niivue` and `NVImage`.
        origin: name and version of the package it comes from.
        license: its license text, which must be included.
    """

    module: str
    origin: str
    license: str


def find_bundle() -> Bundle:
    """NiiVue out of the installed `ipyniivue`, whose widget carries the whole module, percent-encoded, to
    save pages with.

    Raises:
        UsageError: the package is not installed, or has no such module.
    """
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"view: the package {PACKAGE} is not installed; pip install 'brats-seg[view]'"
        ) from None
    origin = f"{PACKAGE} {package.version}"
    widget = Path(str(package.locate_file(f"{PACKAGE}/static/widget.js")))
    script = widget.read_text(encoding="utf-8") if widget.is_file() else ""
    module = unquote(max(_LITERAL.findall(script), key=len, default=""))
    exports = module[module.rfind("export{") :]
    if not all(re.search(rf"\b{name}\b", exports) for name in ("Niivue", "NVImage", "SLICE_TYPE")):
        raise UsageError(
            f"view: {origin} holds no NiiVue module that this version can use; pip install '{PACKAGE}==2.4.4'"
        )
    return Bundle(
        module, origin, package.read_text("licenses/LICENSE") or f"License: {package.metadata['License']}"
    )
