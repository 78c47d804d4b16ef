import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import nibabel
import numpy as np
import pytest
from chromium import Browser, find_chromium
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from brats_seg.core.errors import InputError, UsageError
from brats_seg.reporting import viewer
from brats_seg.reporting.bundle import Bundle, find_bundle
from brats_seg.reporting.style import color_of
from brats_seg.reporting.view_pages import case_of_scans, find_case, write_pages
from brats_seg.reporting.viewer import other_case_in, write_page
from brats_seg.scans.case import MODALITIES, Case, ScanFile
from brats_seg.scans.geometry import Geometry, make_geometry
from brats_seg.scans.volume import read_volume, write_label_map, write_volume

SHAPE = (20, 28, 24)
BRAIN = (slice(2, 18), slice(4, 24), slice(5, 19))
CLASSES = (
    "healthy",
    "necrotic_or_non_enhancing",
    "edema",
    "enhancing_core",
)  # of brats2017, whose values are 0, 1, 2, 4


def make_label() -> np.ndarray:
    """A core of 2 x 5 x 10 = 100 voxels inside edema, 10 of them enhancing; 8 x 10 x 12 voxels of tumor in
    all.
    """
    label = np.zeros(SHAPE, np.uint8)
    label[6:14, 8:18, 6:18] = 2
    label[9:11, 10:15, 7:17] = 1
    label[9, 10, 7:17] = 4
    return label


def make_scans() -> np.ndarray:
    """Each modality has a ramp of its own along another axis, in the brain alone (Z, Y, X, M)."""
    z, y, x = np.indices(SHAPE)
    scans = np.zeros((*SHAPE, 4), np.int16)
    scans[BRAIN] = np.stack([100 + 10 * z, 100 + 10 * y, 100 + 10 * x, 400 - 10 * x], axis=-1)[BRAIN]
    return scans


def write_case(folder: Path, geometry: Geometry | None = None) -> Case:
    """A case of four files and a label, of voxels of 2 mm3."""
    folder.mkdir(parents=True, exist_ok=True)
    geometry = geometry or make_geometry(SHAPE, spacing_mm=(2, 1, 1))
    files = {}
    for name, scan in zip(MODALITIES, np.moveaxis(make_scans(), 3, 0), strict=True):
        write_volume(folder / f"{name}.nii.gz", scan, geometry, dtype="int16")
        files[name] = ScanFile(folder / f"{name}.nii.gz")
    write_label_map(folder / "seg.nii.gz", make_label(), geometry, dtype="uint8")
    return Case(
        "Case <1>", "Case <1>", "brats2021", "brats2017", files, ScanFile(folder / "seg.nii.gz"), folder
    )


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return write_case(tmp_path / "case")


@pytest.fixture
def no_niivue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything about a page but NiiVue itself can be tested without it."""
    monkeypatch.setattr(
        viewer, "find_bundle", lambda: Bundle("export{}", "a package 1.0", "Redistribution is fine")
    )


class Page(HTMLParser):
    """The parts of a page: scripts by id, every address, and the rows of its tables."""

    def __init__(self, path: Path):
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.scripts: dict[str, str] = {}
        self.addresses: list[str] = []
        self.rows: list[list[str]] = []
        self._script: str | None = None
        self._cell = False
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.addresses += [
            given[name] or "" for name in ("src", "href", "srcset", "data", "action") if name in given
        ]
        if tag == "script":
            self._script = given.get("id") or "code"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._script = None if tag == "script" else self._script
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._script:
            self.scripts[self._script] = self.scripts.get(self._script, "") + data
        if self._cell:
            self.rows[-1][-1] += data

    def volume(self, name: str) -> nibabel.Nifti1Image:
        return nibabel.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(self.scripts[name])))

    def frames(self, name: str) -> np.ndarray:
        """(frame, Z, Y, X)"""
        return np.asarray(self.volume(name).dataobj).transpose(3, 2, 1, 0)

    def table(self) -> dict[str, list[str]]:
        return {row[0].strip(): [cell.strip() for cell in row[1:]] for row in self.rows if len(row) > 1}


@pytest.mark.usefixtures("no_niivue")
def test_a_page_holds_everything_and_asks_for_nothing(case: Case, tmp_path: Path) -> None:
    page = Page(write_page(case, prediction=None, reference=None, output=tmp_path / "page.html"))
    assert page.addresses == ["data:,"]
    assert "default-src 'none'" in page.text
    assert not re.search(r"\b(fetch|XMLHttpRequest|WebSocket|@import)\b", page.text)
    assert "Case &lt;1&gt;" in page.text
    assert "<1>" not in page.text
    assert "Redistribution is fine" in page.text
    assert gzip.decompress(base64.b64decode(page.scripts["niivue"])) == b"export{}"


@pytest.mark.usefixtures("no_niivue")
def test_scans_are_cropped_to_the_brain_and_quantized(case: Case, tmp_path: Path) -> None:
    page = Page(write_page(case, prediction=None, reference=None, output=tmp_path / "page.html"))
    frames = page.frames("scans")
    assert frames.shape == (
        4,
        20,
        26,
        20,
    )  # the brain's 16 x 20 x 14 and three voxels around it, as far as the volume goes
    brain = np.zeros(frames.shape[1:], bool)
    brain[2:18, 3:23, 3:17] = True
    assert np.array_equal(frames > 0, np.broadcast_to(brain, frames.shape))
    assert {int(frame.max()) for frame in frames} == {viewer.WHITE}
    assert np.all(np.diff(frames[2][brain].reshape(16, 20, 14).astype(int), axis=2) > 0)
    assert np.all(np.diff(frames[3][brain].reshape(16, 20, 14).astype(int), axis=2) < 0)


@pytest.mark.usefixtures("no_niivue")
def test_the_legend_says_how_many_ml(case: Case, tmp_path: Path) -> None:
    prediction = make_label()
    prediction[prediction == 4] = 1
    write_label_map(
        tmp_path / "p.nii.gz", prediction, make_geometry(SHAPE, spacing_mm=(2, 1, 1)), dtype="uint8"
    )
    table = Page(
        write_page(case, prediction=tmp_path / "p.nii.gz", reference=None, output=tmp_path / "page.html")
    ).table()
    # 960 voxels of tumor, 100 of core, 10 of it enhancing; 2 mm3 each
    assert table["Tissue class"] == ["Prediction", "Reference"]
    assert table["Necrotic or non-enhancing"] == ["0.2", "0.2"]
    assert table["Edema"] == ["1.7", "1.7"]
    assert table["Enhancing core"] == ["–", "< 0.1"]
    assert table["Whole tumor"] == ["1.9", "1.9"]
    assert table["Tumor core"] == ["0.2", "0.2"]


@pytest.mark.usefixtures("no_niivue")
def test_a_prediction_is_read_in_the_schema_that_is_asked_for_or_refused(case: Case, tmp_path: Path) -> None:
    """In the values of MSD edema is 1, core 2 and enhancing core 3; the case has 1, 2 and 4."""
    grid = make_geometry(SHAPE, spacing_mm=(2, 1, 1))
    in_msd = np.array([0, 2, 1, 0, 3], np.uint8)[make_label()]
    write_label_map(tmp_path / "p.nii.gz", in_msd, grid, dtype="uint8")

    def shown(schema: str | None) -> Page:
        return Page(
            write_page(
                case,
                prediction=tmp_path / "p.nii.gz",
                reference=None,
                output=tmp_path / "page.html",
                prediction_schema=schema,
            )
        )

    table = shown("msd").table()
    for name in ("Necrotic or non-enhancing", "Edema", "Enhancing core", "Whole tumor", "Tumor core"):
        prediction, reference = table[name]
        assert prediction == reference
    with pytest.raises(UsageError, match="--prediction-schema brats: no such label schema"):
        shown("brats")
    row = f"{case.id},p.nii.gz,brats2017"
    (tmp_path / "predictions.csv").write_text(f"case,file,schema\n{row}\n")
    with pytest.raises(
        UsageError, match=r"--prediction-schema msd: predictions\.csv .* says brats2017; leave"
    ):
        shown("msd")


@pytest.mark.usefixtures("no_niivue")
def test_overlays_are_class_indices_filled_and_lined(case: Case, tmp_path: Path) -> None:
    page = Page(write_page(case, prediction=None, reference=None, output=tmp_path / "page.html"))
    filled, line = page.frames("reference")
    box = (slice(0, 20), slice(1, 27), slice(2, 22))
    expected = np.zeros(5, np.uint8)
    expected[[1, 2, 4]] = [
        CLASSES.index(name) for name in ("necrotic_or_non_enhancing", "edema", "enhancing_core")
    ]
    assert np.array_equal(filled, expected[make_label()[box]])
    settings = json.loads(page.scripts["page"])
    assert settings["overlays"] == [{"id": "reference", "key": "R", "shown": 2}]
    assert [row["color"] for row in settings["classes"]] == [color_of(name) for name in CLASSES[1:]]
    assert (line == filled)[line > 0].all()
    assert 0 < (line > 0).sum() < (filled > 0).sum()


@pytest.mark.usefixtures("no_niivue")
def test_the_page_opens_inside_the_largest_slice_of_tumor(case: Case, tmp_path: Path) -> None:
    page = Page(write_page(case, prediction=None, reference=None, output=tmp_path / "page.html"))
    image = page.volume("reference")
    x, y, z = np.linalg.inv(image.affine)[:3] @ (*json.loads(page.scripts["page"])["start_mm"], 1)
    assert page.frames("reference")[0][round(z), round(y), round(x)] > 0


@pytest.mark.usefixtures("no_niivue")
@pytest.mark.parametrize("orientation", ["RAS", "PIR", "ASL"])
def test_other_orientations_give_the_same_page(case: Case, tmp_path: Path, orientation: str) -> None:
    turned = write_case(
        tmp_path / "turned", make_geometry(SHAPE, spacing_mm=(2, 1, 1), orientation=orientation)
    )
    pages = [
        Page(write_page(c, prediction=None, reference=None, output=tmp_path / "page.html"))
        for c in (case, turned)
    ]
    for name in ("scans", "reference"):
        one, other = (page.volume(name) for page in pages)
        assert np.array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))
        np.testing.assert_allclose(one.affine, other.affine, atol=1e-5)


@pytest.mark.usefixtures("no_niivue")
def test_the_page_keeps_oblique_planes_in_place(tmp_path: Path) -> None:
    angle = np.deg2rad(12)
    affine = np.array(
        [
            [-np.cos(angle), np.sin(angle), 0, 30],
            [-np.sin(angle), -np.cos(angle), 0, 40],
            [0, 0, 2, -50],
            [0, 0, 0, 1],
        ]
    )
    oblique = write_case(tmp_path / "oblique", make_geometry(SHAPE, affine=affine))
    image = Page(write_page(oblique, prediction=None, reference=None, output=tmp_path / "page.html")).volume(
        "scans"
    )
    corner = affine @ (2, 1, 0, 1)  # the crop starts at x 2, y 1, z 0
    np.testing.assert_allclose(image.affine @ (0, 0, 0, 1), corner, atol=1e-4)


@pytest.mark.usefixtures("no_niivue")
def test_four_channels_of_one_file(case: Case, tmp_path: Path) -> None:
    write_volume(
        tmp_path / "stack.nii.gz", make_scans(), make_geometry(SHAPE, spacing_mm=(2, 1, 1)), dtype="int16"
    )
    files = {name: ScanFile(tmp_path / "stack.nii.gz", channel) for channel, name in enumerate(MODALITIES)}
    stacked = Case(case.id, case.patient, "msd", "brats2017", files, case.label, tmp_path)
    write_page(case, prediction=None, reference=None, output=tmp_path / "four.html")
    write_page(stacked, prediction=None, reference=None, output=tmp_path / "one.html")
    assert (tmp_path / "four.html").read_bytes() == (tmp_path / "one.html").read_bytes()


@pytest.mark.usefixtures("no_niivue")
def test_a_case_without_labels_and_with_two_modalities(case: Case, tmp_path: Path) -> None:
    files = {name: case.modalities[name] for name in ("t1c", "t2f")}
    bare = Case(case.id, case.patient, case.layout, case.schema, files, None, case.folder)
    page = Page(write_page(bare, prediction=None, reference=None, output=tmp_path / "page.html"))
    assert page.frames("scans").shape[0] == 2
    assert json.loads(page.scripts["page"])["overlays"] == []
    assert "Volume in ml" not in page.text


def test_what_cannot_be_shown_is_named(case: Case, tmp_path: Path, no_niivue: None) -> None:
    def refused(prediction: np.ndarray, geometry: Geometry) -> str:
        write_label_map(tmp_path / "p.nii.gz", prediction, geometry, dtype="uint8")
        with pytest.raises(InputError) as error:
            write_page(case, prediction=tmp_path / "p.nii.gz", reference=None, output=tmp_path / "page.html")
        return str(error.value)

    at_home = make_geometry(SHAPE, spacing_mm=(2, 1, 1))
    assert re.search(
        r"Case <1>: .*p\.nii\.gz: shape \(4, 4, 4\).*\(20, 28, 24\)",
        refused(np.zeros((4, 4, 4), np.uint8), make_geometry((4, 4, 4))),
    )
    assert "affine" in refused(make_label(), make_geometry(SHAPE, spacing_mm=(3, 1, 1)))
    assert re.search(
        r"p\.nii\.gz: .*values 3 are not in schema", refused(np.full(SHAPE, 3, np.uint8), at_home)
    )
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    ("name", "case", "other"),
    [
        ("BraTS2021_00008.nii.gz", "BraTS2021_00006", "BraTS2021_00008"),
        ("BraTS-GLI-00006-001-seg.nii.gz", "BraTS-GLI-00006-000", "BraTS-GLI-00006-001"),
        ("sub-12_dseg.nii.gz", "sub-1", "sub-12"),
        ("BraTS2021_00006_seg.nii.gz", "BraTS2021_00006", None),
        ("W39_1998.09.19_Segm.nii", "BraTS20_Training_355", None),
        ("2.nii.gz", "1", None),  # a number alone may count anything
        ("mine.nii.gz", "BraTS2021_00006", None),
    ],
)
def test_a_file_name_that_says_another_case_is_known(name: str, case: str, other: str | None) -> None:
    assert other_case_in(name, case) == other


@pytest.mark.usefixtures("no_niivue")
@pytest.mark.parametrize("role", ["prediction", "reference"])
def test_a_label_map_of_another_case_is_refused_by_its_name(case: Case, tmp_path: Path, role: str) -> None:
    """The grid fits: all cases of a release have one."""
    ours, theirs = replace(case, id="BraTS2021_00006"), tmp_path / "BraTS2021_00008.nii.gz"
    write_label_map(theirs, make_label(), make_geometry(SHAPE, spacing_mm=(2, 1, 1)), dtype="uint8")
    files = {"prediction": None, "reference": None} | {role: theirs}
    with pytest.raises(InputError, match=r"case BraTS2021_00006: .*its name says case BraTS2021_00008"):
        write_page(ours, **files, output=tmp_path / "page.html")
    theirs.rename(tmp_path / "BraTS2021_00006.nii.gz")
    write_page(ours, **(files | {role: tmp_path / "BraTS2021_00006.nii.gz"}), output=tmp_path / "page.html")


@pytest.mark.usefixtures("no_niivue")
@pytest.mark.parametrize(
    ("files", "message"), [("none", "at least one of t1n"), ("empty", "every voxel of its scans is 0")]
)
def test_a_case_with_nothing_to_show(case: Case, tmp_path: Path, files: str, message: str) -> None:
    write_volume(
        tmp_path / "empty.nii.gz",
        np.zeros(SHAPE, np.int16),
        make_geometry(SHAPE, spacing_mm=(2, 1, 1)),
        dtype="int16",
    )
    scans: Mapping[str, ScanFile] = {} if files == "none" else {"t1n": ScanFile(tmp_path / "empty.nii.gz")}
    bare = Case(case.id, case.patient, case.layout, case.schema, scans, None, case.folder)
    with pytest.raises(InputError, match=message):
        write_page(bare, prediction=None, reference=None, output=tmp_path / "page.html")


def test_the_extra_is_asked_for_by_name(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(UsageError, match=r"ipyniivue is not installed; pip install 'brats-seg\[view\]'"):
        write_page(case, prediction=None, reference=None, output=tmp_path / "page.html")


def test_a_page_is_html(case: Case, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"page\.png.*ends in \.html"):
        write_page(case, prediction=None, reference=None, output=tmp_path / "page.png")


@given(arrays(np.uint8, (3, 4, 5), elements=st.integers(0, 3)))
def test_a_line_runs_at_every_border(tissue: np.ndarray) -> None:
    line = viewer._outline(tissue, CLASSES)
    assert np.array_equal(line[line > 0], tissue[line > 0])
    for axis in range(3):
        tissue_here, tissue_next = np.delete(tissue, -1, axis), np.delete(tissue, 0, axis)
        line_here, line_next = np.delete(line, -1, axis), np.delete(line, 0, axis)
        assert ((line_here > 0) | (line_next > 0))[tissue_here != tissue_next].all()


@pytest.mark.usefixtures("no_niivue")
def test_the_page_gives_voxels_as_the_file_numbers_them(tmp_path: Path) -> None:
    turned = write_case(tmp_path / "turned", make_geometry(SHAPE, spacing_mm=(2, 1, 1), orientation="RAS"))
    page = Page(write_page(turned, prediction=None, reference=None, output=tmp_path / "page.html"))
    told = json.loads(page.scripts["page"])
    i, j, k = np.rint(np.array(told["to_voxel"])[:3] @ (*told["start_mm"], 1)).astype(int)
    label = nibabel.load(turned.label.path) if turned.label else None
    assert np.asarray(label.dataobj)[i, j, k] > 0  # the page opens inside the tumor


@pytest.mark.usefixtures("no_niivue")
def test_an_overlay_begins_as_an_outline_and_of_two_the_reference_does(case: Case, tmp_path: Path) -> None:
    for prediction, shown in ((None, [2]), (case.label and case.label.path, [1, 2])):
        page = Page(write_page(case, prediction=prediction, reference=None, output=tmp_path / "page.html"))
        assert [one["shown"] for one in json.loads(page.scripts["page"])["overlays"]] == shown


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    """Two cases of plain names, and a folder of their label maps."""
    (tmp_path / "predictions").mkdir()
    for name in ("a", "b"):
        made = write_case(tmp_path / "scans" / name)
        assert made.label is not None
        (tmp_path / "predictions" / f"{name}.nii.gz").write_bytes(made.label.path.read_bytes())
    return tmp_path


@pytest.mark.usefixtures("no_niivue")
def test_a_folder_of_predictions_has_pages_that_lead_to_each_other(cohort: Path) -> None:
    pages = write_pages(
        cohort / "scans", cohort / "predictions", output=cohort / "pages",
        schema="brats2017", prediction_schema="brats2017",
    )  # fmt: skip
    assert [page.name for page in pages] == ["a.html", "b.html"]
    assert [Page(page).addresses for page in pages] == [["data:,", "b.html"], ["data:,", "a.html"]]
    (cohort / "none").mkdir()
    with pytest.raises(InputError, match="holds no label map of a case"):
        write_pages(cohort / "scans", cohort / "none", output=cohort / "pages")
    with pytest.raises(UsageError, match="name a folder"):
        write_pages(cohort / "scans", cohort / "predictions", output=cohort / "page.html")


def test_a_case_is_named_where_there_are_several(cohort: Path) -> None:
    assert find_case(cohort / "scans", id="b").id == "b"
    assert find_case(cohort / "scans" / "a").id == "a"
    with pytest.raises(InputError, match=r"holds 2 cases \(a, b\); give .* or --case ID"):
        find_case(cohort / "scans")
    with pytest.raises(InputError, match="holds no case c"):
        find_case(cohort / "scans", id="c")
    manifest = cohort / "manifest.csv"
    manifest.write_text(
        "case,t1n,t1c,t2w,t2f\n"
        + "".join(
            f"{name},{','.join(f'scans/{name}/{m}.nii.gz' for m in MODALITIES)}\n" for name in ("a", "b")
        )
    )
    assert find_case(manifest, id="a").modalities.keys() == set(MODALITIES)


@pytest.mark.usefixtures("no_niivue")
def test_single_scans_make_a_page(cohort: Path) -> None:
    files = {"t2f": cohort / "scans" / "a" / "t2f.nii.gz"}
    shown = case_of_scans(files, reference=None, schema=None)
    page = Page(write_page(shown, prediction=None, reference=None, output=cohort / "page.html"))
    assert shown.id == "t2f"
    assert page.frames("scans").shape[0] == 1


# --- with NiiVue ---


@pytest.fixture
def niivue() -> Bundle:
    """NiiVue as installed."""
    try:
        return find_bundle()
    except UsageError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    executable = find_chromium()
    if executable is None:
        pytest.skip("no Chromium on this machine: pages are not opened")
    browser = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


def test_the_bundle_is_a_module_with_its_license(niivue: Bundle) -> None:
    assert not re.search(r"(^|[;\n])import[ {*\"']", niivue.module)  # nothing beside it is needed
    assert re.fullmatch(r"ipyniivue \d+\.\d+\.\d+", niivue.origin)
    assert "Redistribution" in niivue.license


def place_of_stage(browser: Browser) -> list[int]:
    """Left, top, width and height of the canvas in pixels."""
    numbers = "({ x, y, width, height }) => [x, y, width, height].map(Math.round)"
    return browser.run(f"({numbers})(document.querySelector('canvas').getBoundingClientRect())")


def stage_of(browser: Browser) -> np.ndarray:
    """The canvas as seen, (Y, X, 3)."""
    left, top, width, height = place_of_stage(browser)
    return browser.screenshot()[top : top + height, left : left + width]


def n_colored(stage: np.ndarray, tissue: str) -> int:
    """Pixels of the very color of a tissue class."""
    color = [int(color_of(tissue)[i : i + 2], 16) for i in (1, 3, 5)]
    return int((np.abs(stage - color).max(axis=2) <= 6).sum())


@pytest.mark.usefixtures("niivue")
def test_a_browser_shows_the_page(case: Case, tmp_path: Path, chromium: Browser) -> None:
    page = write_page(
        case, prediction=case.label and case.label.path, reference=None, output=tmp_path / "page.html"
    )
    assert chromium.open(page) == "ready", chromium.run("document.getElementById('message').textContent")
    flair = stage_of(chromium)
    assert flair.std() > 10
    chromium.press("1")
    t1 = stage_of(chromium)
    assert (np.abs(t1 - flair).max(axis=2) > 30).mean() > 0.02
    chromium.press("4")
    assert np.abs(stage_of(chromium) - flair).max() <= 2
    assert chromium.complaints == []
    assert {address.split(":")[0] for address in chromium.requests} <= {"file", "blob", "data"}
    assert [address for address in chromium.requests if address.startswith("file")] == [page.as_uri()]


@pytest.mark.usefixtures("niivue")
def test_a_browser_shows_and_hides_overlays(case: Case, tmp_path: Path, chromium: Browser) -> None:
    chromium.open(write_page(case, prediction=None, reference=None, output=tmp_path / "page.html"))
    chromium.run("document.querySelector('input[name=reference][value=\"1\"]').click()")  # filled
    chromium.run(
        "(() => { const range = document.querySelector('[name=reference-opacity]'); range.value = 100;"
        " range.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    shown = n_colored(stage_of(chromium), "edema")
    assert shown > 2000
    chromium.run("document.querySelector('input[name=class][value=\"2\"]').click()")
    assert n_colored(stage_of(chromium), "edema") == 0
    assert n_colored(stage_of(chromium), "necrotic_or_non_enhancing") > 500
    chromium.run("document.querySelector('input[name=class][value=\"2\"]').click()")
    chromium.press("R")
    assert n_colored(stage_of(chromium), "edema") == 0
    chromium.press("R")
    assert n_colored(stage_of(chromium), "edema") == shown
    assert chromium.complaints == []


@pytest.mark.usefixtures("niivue")
def test_a_browser_scrolls(case: Case, tmp_path: Path, chromium: Browser) -> None:
    chromium.open(write_page(case, prediction=None, reference=None, output=tmp_path / "page.html"))

    def here() -> list[float]:
        text = chromium.run("document.querySelector('[data-here=place]').textContent").replace("−", "-")
        return [float(number) for number in re.findall(r"-?\d+\.\d", text)]

    start = here()
    assert chromium.run("document.querySelector('[data-here=reference]').textContent") == "edema"
    chromium.press("ArrowUp")
    assert np.subtract(here(), start).tolist() == [0, 0, 2]  # one slice of 2 mm
    chromium.press("ArrowLeft")
    assert np.subtract(here(), start).tolist() == [1, 0, 2]  # to the patient's right
    x, y = chromium.run(
        "(({ x, y, width, height }) => [x + width / 4, y + height / "
        "2])(document.querySelector('canvas').getBoundingClientRect())"
    )
    chromium.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-100)
    assert abs(here()[2] - start[2] - 2) == 2


@pytest.mark.usefixtures("niivue")
def test_a_real_case_makes_a_small_page(real_data: Path, tmp_path: Path) -> None:
    folder = next((real_data / "BraTS2021").iterdir())
    names = {"t1n": "t1", "t1c": "t1ce", "t2w": "t2", "t2f": "flair"}
    files = {name: ScanFile(folder / f"{folder.name}_{suffix}.nii.gz") for name, suffix in names.items()}
    label = ScanFile(folder / f"{folder.name}_seg.nii.gz")
    real = Case(folder.name, folder.name, "brats2021", "brats2017", files, label, folder)
    page = Page(write_page(real, prediction=None, reference=None, output=tmp_path / "page.html"))
    assert len(page.text) < 8e6
    assert np.count_nonzero(page.frames("reference")[0]) == np.count_nonzero(read_volume(label)[0])
