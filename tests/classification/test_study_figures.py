"""Figures of the studies: what is drawn, and of which numbers."""

import numpy as np
import pytest
from matplotlib import colors
from matplotlib.figure import Figure
from study_rows import METHODS, a_row, a_study, curved, reduced, two_class

from brats_seg.reporting.plots import png
from brats_seg.studies.lines import method_look
from brats_seg.studies.study_figures import figure1, study_figures, write_figures
from brats_seg.studies.two_class import runs, two_class_figures

pytestmark = pytest.mark.usefixtures("drawn")


def visible(figure: Figure):
    return [ax for ax in figure.axes if ax.get_visible()]


def titles(figure: Figure):
    return [ax.get_title(loc="left") for ax in visible(figure)]


def test_figure_1_draws_the_published_counts():
    heights = [[int(bar.get_height()) for bar in ax.patches] for ax in figure1().axes]
    assert heights == [[500] * 5 + [5000] * 5, [2500] * 9 + [5000], list(range(500, 5001, 500))]
    assert all(title.endswith(": 27,500 images") for title in titles(figure1()))


def test_a_study_of_two_sets_has_the_layout_of_the_paper():
    figures = study_figures(
        a_study() + a_study("cifar10", rhos=(2.0, 10.0, 20.0, 50.0), mus=(0.2, 0.5, 0.8), repeats=1)
    )
    assert list(figures) == [
        "figure1_distributions",
        "figure3_auc_over_rho",
        "figure4_auc_over_mu",
        "figure5_linear",
        "figure6_accuracy",
    ]
    assert titles(figures["figure3_auc_over_rho"]) == [
        "(a) MNIST, 2 minority classes", "(b) MNIST, 5 minority classes", "(c) MNIST, 9 minority classes",
        "(d) CIFAR-10, 2 minority classes", "(e) CIFAR-10, 5 minority classes", "(f) CIFAR-10, 8 minority "
                                                                                "classes",
    ]  # fmt: skip
    assert titles(figures["figure4_auc_over_mu"])[:3] == [
        "(a) MNIST, ρ = 50",
        "(b) MNIST, ρ = 250",
        "(c) MNIST, ρ = 1000",
    ]
    assert titles(figures["figure5_linear"]) == ["(a) MNIST, linear", "(b) CIFAR-10, linear"]
    panel = figures["figure3_auc_over_rho"].axes[0]
    assert (len(panel.lines), len(panel.collections)) == (5, 5)
    assert panel.get_xscale() == "log"


def test_a_line_is_the_mean_over_repeats_and_its_band_one_standard_deviation():
    rows = a_study()
    panel = study_figures(rows)["figure3_auc_over_rho"].axes[0]
    values = [
        100 * r["auc"]
        for r in rows
        if (r["method"], r["rho"], r["mu"], r["decision"]) == ("baseline", 250, 0.2, "argmax")
    ]
    assert panel.lines[0].get_xdata().tolist() == [50, 250, 1000]
    assert panel.lines[0].get_ydata()[1] == pytest.approx(np.mean(values))
    edges = panel.collections[0].get_paths()[0].vertices
    at_250 = edges[edges[:, 0] == 250][:, 1]
    assert at_250.max() - at_250.min() == pytest.approx(2 * np.std(values, ddof=1))


def test_accuracy_is_drawn_with_and_without_thresholding():
    figure = study_figures(a_study())["figure6_accuracy"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [
        "baseline",
        "baseline, thresholding",
        "oversampling",
        "oversampling, thresholding",
        "undersampling",
        "undersampling, thresholding",
    ]


def test_reduced_ratios_end_at_the_baseline():
    figure = study_figures(a_study() + reduced())["figure7_reduced_ratio"]
    assert titles(figure) == ["(a) MNIST, ρ = 1000, oversampling", "(b) MNIST, ρ = 1000, undersampling"]
    line = figure.axes[0].lines[0]
    assert line.get_xdata().tolist() == [1, 10, 100, 1000]
    full = [
        100 * r["auc"]
        for r in a_study()
        if (r["method"], r["rho"], r["mu"], r["decision"]) == ("baseline", 1000, 0.2, "argmax")
    ]
    assert line.get_ydata()[-1] == pytest.approx(np.mean(full))


def test_convergence_draws_training_and_test_accuracy_on_one_scale():
    figure = study_figures(curved(images="cifar10"))["figure8_convergence"]
    assert titles(figure) == [
        "(a) CIFAR-10, baseline",
        "(b) CIFAR-10, oversampling",
        "(c) CIFAR-10, undersampling",
    ]
    assert len({ax.get_ylim() for ax in figure.axes}) == 1
    assert figure.axes[0].lines[0].get_xdata().tolist() == list(range(50, 1001, 50))
    assert "ρ = 50, 5 minority classes" in figure.legends[0].get_title().get_text()


def test_the_auc_over_the_iterations_has_a_panel_for_each_method():
    rows = curved((*METHODS, *(f"method_{i}" for i in range(23))))
    figure = study_figures(rows)["learning_curves_auc"]
    assert len(visible(figure)) == 28
    assert titles(figure)[0] == "(a) MNIST, baseline"
    assert titles(figure)[-1] == "MNIST, method 9"  # letters end at the 26th panel
    train, test = figure.axes[0].lines
    assert train.get_ydata() == pytest.approx([100 * point["train_auc"] for point in rows[0]["curve"]])
    assert test.get_ydata()[-1] == pytest.approx(100 * (0.9 - 0.4 / 51))
    assert figure.axes[0].get_ylabel() == "multi-class ROC AUC, %"


def test_a_long_tail_has_learning_curves_too():
    figures = study_figures(curved(kind="exponential", mu=None))
    assert "exponential, ρ = 50" in figures["learning_curves_auc"].legends[0].get_title().get_text()
    assert len(visible(figures["figure8_convergence"])) == 3


def test_of_several_trainings_the_best_is_drawn():
    rows = [
        a_row(rho=rho, rate=rate, auc=auc) for rho in (2.0, 10.0) for rate, auc in ((0.05, 0.7), (0.005, 0.9))
    ]
    assert study_figures(rows)["figure3_auc_over_rho"].axes[0].lines[0].get_ydata().tolist() == [90, 90]


def test_trainings_picked_by_the_validation_images_are_drawn_beside():
    """Two rates: the one that is best on the test images is not the one that validation picks."""
    rows = [
        a_row(rho=rho, rate=rate, auc=auc, validation=1 - auc)
        for rho in (2.0, 10.0)
        for rate, auc in ((0.05, 0.7), (0.005, 0.9))
    ]
    figures = study_figures(rows)
    assert figures["figure3_auc_over_rho"].axes[0].lines[0].get_ydata().tolist() == [90, 90]
    assert figures["figure3_auc_over_rho_picked_on_validation"].axes[0].lines[
        0
    ].get_ydata().tolist() == pytest.approx([70, 70])
    assert "by their AUC on the test images" in figures["figure3_auc_over_rho"].get_suptitle()
    assert (
        "by their score on the validation images"
        in figures["figure3_auc_over_rho_picked_on_validation"].get_suptitle()
    )
    assert (
        study_figures(a_study())["figure3_auc_over_rho"].get_suptitle() == ""
    )  # one run each: nothing was picked


def test_a_study_of_one_point_a_set_of_the_readers_own_and_a_network_that_diverged():
    rows = [
        a_row(images="npz", method=method, auc=auc)
        for method, auc in (("baseline", 0.9), ("smote", 0.8), ("focal", None))
    ]
    figures = study_figures(rows)
    assert titles(figures["figure3_auc_over_rho"]) == ["(a) images, 5 minority classes"]
    assert [text.get_text() for text in figures["figure3_auc_over_rho"].legends[0].get_texts()] == [
        "baseline",
        "smote",
    ]
    assert list(study_figures([])) == []


def test_many_methods_on_one_set_are_lines_of_dots_by_name():
    names = [*METHODS[:3], *(f"method_{i}" for i in range(12))]
    rows = [
        a_row(m, rho=50.0, repeat=r, decision=d)
        for m in names
        for r in range(2)
        for d in ("argmax", "prior_set")
    ]
    figure = study_figures(rows)["figure6_accuracy"]
    panel = figure.axes[0]
    assert [text.get_text() for text in panel.get_yticklabels()][:4] == [
        "baseline",
        "oversampling",
        "undersampling",
        "method 0",
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "largest probability",
        "thresholding",
    ]
    of_baseline = [
        100 * r["accuracy"] for r in rows if (r["method"], r["decision"]) == ("baseline", "argmax")
    ]
    assert panel.lines[0].get_xdata() == pytest.approx(np.mean(of_baseline))
    png(figure)  # warnings are errors: nothing collapses


def test_a_long_legend_does_not_cover_the_panels():
    names = [*METHODS[:3], *(f"method_{i}" for i in range(15))]
    figure = study_figures(
        [a_row(m, rho=rho, decision=d) for m in names for rho in (2.0, 9.0) for d in ("argmax", "prior_set")]
    )
    drawn = figure["figure6_accuracy"]
    drawn.draw_without_rendering()
    assert drawn.legends[0].get_window_extent().y1 <= drawn.axes[0].get_tightbbox().y0


def test_methods_are_told_apart():
    others = [f"method_{i}" for i in range(15)]
    looks = [method_look(name, [*METHODS, *others]) for name in [*METHODS, *others]]
    assert len(set(looks)) == len(looks)
    assert ":" not in [dashes for _, dashes, _ in looks]  # dots are thresholding's
    assert all(colors.is_color_like(look[0]) for look in looks)


def test_the_two_class_report():
    rows = two_class()
    assert list(runs(rows))[:2] == ["balanced", "unbalanced"]
    assert study_figures(rows) == {}  # the systematic study's are of step and linear imbalance
    figures = two_class_figures(rows, class_names=("airplane", "automobile"))
    assert list(figures) == [
        "two_class_distribution",
        "two_class_curves",
        "two_class_loss",
        "two_class_confusion_test",
        "two_class_confusion_held_out",
        "two_class_roc",
        "two_class_scores",
    ]
    assert titles(figures["two_class_distribution"]) == ["balanced", "unbalanced"]
    assert len(visible(figures["two_class_confusion_test"])) == 7
    unbalanced = visible(figures["two_class_confusion_held_out"])[1]
    total = np.sum(
        [
            r["confusion"]
            for r in rows
            if r["method"] == "baseline" and r["counts"][1] == 50 and r["part"] == "held_out"
        ],
        axis=0,
    )
    assert unbalanced.texts[3].get_text().splitlines()[0] == f"{total[1, 1]:,}"
    roc = visible(figures["two_class_roc"])[0]
    assert len(roc.lines) == 1 + 9
    assert titles(figures["two_class_scores"])[::3] == [
        "AUC: test images, n = 192",
        "AUC: held-out images, n = 2,000",
    ]


def test_loss_is_drawn_as_recorded_and_not_where_it_was_not():
    rows = two_class()
    panel = two_class_figures(rows, class_names=("a", "b"))["two_class_loss"].axes[0]
    assert panel.lines[1].get_ydata().tolist() == [point["test_loss"] for point in rows[0]["curve"]]
    for row in rows:
        row["curve"] = [
            {key: value for key, value in point.items() if not key.endswith("loss")} for point in row["curve"]
        ]
    assert "two_class_loss" not in two_class_figures(rows, class_names=("a", "b"))


def test_bars_reach_the_mean_of_the_repeats():
    rows = [r for r in two_class() if r["part"] == "test"]
    recall = two_class_figures(rows, class_names=("a", "b"))["two_class_scores"].axes[1]
    of_over = [r["recall_per_class"][1] for r in rows if r["method"] == "oversample"]
    assert recall.patches[2].get_width() == pytest.approx(np.mean(of_over))


def test_more_classes_have_no_two_class_figures():
    assert two_class_figures(a_study()) == {}


def test_files_are_png(tmp_path):
    paths = write_figures({"one": figure1()}, tmp_path / "new")
    assert [path.name for path in paths] == ["one.png"]
    assert paths[0].read_bytes()[:4] == b"\x89PNG"
