"""Rows of made-up studies, shaped as `study_rows` gives them."""

import itertools

import numpy as np

METHODS = ("baseline", "oversample", "undersample", "two_phase_oversample", "two_phase_undersample")
DROP = {
    "baseline": 5.0,
    "oversample": 2.0,
    "undersample": 6.0,
    "two_phase_oversample": 3.0,
    "two_phase_undersample": 5.5,
}


def a_row(
    method="baseline",
    *,
    images="mnist",
    kind="step",
    rho=10.0,
    mu=0.5,
    repeat=0,
    decision="argmax",
    part="test",
    k=10,
    ratio=1.0,
    **others,
):
    n_minority = round((mu or 0.9) * k)
    rng = np.random.default_rng([int(rho), n_minority, repeat, len(method)])
    size = (np.log10(rho) * n_minority / 10 * DROP.get(method, 4.0) + rng.normal(0, 0.3)) / 100
    accuracy = max(0.05, 1 - 5 * size * (0.4 if decision == "prior_set" else 1))
    counts = [int(5000 / rho)] * n_minority + [5000] * (k - n_minority)
    return {
        "images": images,
        "kind": kind,
        "rho": rho,
        "mu": mu,
        "given": None,
        "minority_rule": "random",
        "repeat": repeat,
        "minority": list(range(n_minority)),
        "counts": counts,
        "n_train": sum(counts),
        "imbalance_ratio": ratio,
        "rate": 0.01,
        "run": 0,
        "method": method,
        "decision": decision,
        "part": part,
        "auc": 1 - size,
        "accuracy": accuracy,
        "balanced_accuracy": accuracy,
        "validation": None,
        "n_test": 10_000,
        "curve": [],
    } | others


def a_study(images="mnist", *, rhos=(50.0, 250.0, 1000.0), mus=(0.2, 0.5, 0.9), repeats=2):
    rows = [
        a_row(method, images=images, rho=rho, mu=mu, repeat=repeat, decision=decision)
        for rho, mu, repeat in itertools.product(rhos, mus, range(repeats))
        for method in METHODS
        for decision in ("argmax", "prior_set")
    ]
    return rows + [
        a_row(m, images=images, kind="linear", rho=rho, mu=None, repeat=r)
        for rho in rhos
        for m in METHODS
        for r in range(repeats)
    ]


def reduced(ratios=(10.0, 100.0)):
    return [
        a_row(method, rho=1000.0, mu=mu, ratio=ratio, repeat=repeat)
        for mu in (0.2, 0.5, 0.9)
        for method in ("oversample", "undersample")
        for ratio in ratios
        for repeat in range(2)
    ]


def curved(methods=("baseline", "oversample", "undersample"), **others):
    def curve(end):
        return [
            {
                "iteration": i,
                "train_accuracy": 1 - 0.9 / (1 + i / 50),
                "test_accuracy": end - end / (1 + i / 40),
                "train_auc": 1 - 0.5 / (1 + i / 20),
                "test_auc": 0.9 - 0.4 / (1 + i / 20),
                "train_loss": 2 / (1 + i / 50),
                "test_loss": 1 + 1 / (1 + i / 40),
            }
            for i in range(50, 1001, 50)
        ]

    return [
        a_row(m, rho=50.0, curve=curve(0.7 - 0.1 * i + 0.02 * r), repeat=r, **others)
        for i, m in enumerate(methods)
        for r in range(2)
    ]


def two_class():
    rng = np.random.default_rng(0)
    rows = []
    runs = [
        ("baseline", [5000, 5000]),
        *((m, [5000, 50]) for m in (*METHODS[:3], "class_weights", *METHODS[3:])),
    ]
    for (method, counts), repeat in itertools.product(runs, range(3)):
        recall = 0.9 if counts[1] == 5000 else {"baseline": 0.1}.get(method, 0.7) + rng.normal(0, 0.03)
        for part, n in (("test", (103, 89)), ("held_out", (1000, 1000)), ("train", tuple(counts))):
            hit, alarm = int(recall * n[1]), int(0.1 * n[0])
            confusion = [[n[0] - alarm, alarm], [n[1] - hit, hit]]
            x = np.linspace(0, 1, 20)
            rows.append(
                a_row(
                    method,
                    images="cifar10",
                    kind="given",
                    rho=1.0,
                    mu=None,
                    k=2,
                    repeat=repeat,
                    part=part,
                    counts=counts,
                    given=counts,
                    confusion=confusion,
                    n_test=sum(n),
                    auc=0.5 + recall / 2,
                    recall_per_class=[0.9, recall],
                    precision_per_class=[0.9, None if method == "baseline" and repeat == 1 else 0.8],
                    minority=[1],
                    roc=[[list(x), list(x**0.4)], [list(x), list(x ** (1 - recall))]],
                    curve=curved()[0]["curve"] if part == "test" else [],
                )
            )
    return rows
