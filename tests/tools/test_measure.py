"""The report a benchmark ends with."""

import importlib.util
import json
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "tools" / "benchmarks" / "measure.py"


def load_measure():
    spec = importlib.util.spec_from_file_location("benchmarks_measure", SOURCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_last_line_is_json_with_every_key():
    measure = load_measure()
    result = measure.Result(
        "sampling",
        "patches/s",
        300.0,
        400.0,
        "MONAI",
        ratios={"MONAI": 100.0, "TorchIO": 900.0},
        share_of_limit=0.75,
        rows={"ours": 300.0},
    )
    lines = measure.report(result).splitlines()
    assert json.loads(lines[-1]) == {
        "name": "sampling",
        "unit": "patches/s",
        "ours": 300.0,
        "limit": 400.0,
        "headline_peer": "MONAI",
        "ratio": 100.0,
        "ratios": {"MONAI": 100.0, "TorchIO": 900.0},
        "share_of_limit": 0.75,
        "rows": {"ours": 300.0},
    }
    assert "ours / TorchIO: 900" in "\n".join(lines)


def test_contenders_take_turns_and_the_first_round_does_not_count():
    measure = load_measure()
    log = []
    contenders = [
        measure.Contender("a", lambda: log.append("a"), per_turn=2),
        measure.Contender("b", lambda: log.append("b"), per_turn=1, drain=1),
    ]
    seconds = measure.interleave(contenders, rounds=2)
    assert log == ["a", "a", "b", "b"] * 3
    assert set(seconds) == {"a", "b"}
