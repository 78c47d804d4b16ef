"""The package runs where parts of Linux are missing: every module is imported, four verbs run."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

WITHOUT_LINUX = """
import builtins, ctypes, io, os, pkgutil, sys
import filelock, logging, numba, torch  # they know other systems by themselves

loaded, opened = ctypes.CDLL, io.open

def load(name, *args, **kwargs):
    if name == "libc.so.6":
        raise OSError("libc.so.6: cannot open shared object file")
    return loaded(name, *args, **kwargs)

def open_file(file, *args, **kwargs):
    if isinstance(file, (str, os.PathLike)) and os.fspath(file).startswith("/proc"):
        raise FileNotFoundError(2, "No such file or directory", os.fspath(file))
    return opened(file, *args, **kwargs)

ctypes.CDLL, builtins.open, io.open = load, open_file, open_file
sys.modules["fcntl"] = None
del os.sched_getaffinity, os.register_at_fork

import brats_seg
names = [module.name for module in pkgutil.walk_packages(brats_seg.__path__, "brats_seg.")]
for name in names:
    if not name.endswith("__main__"):
        __import__(name)

from brats_seg.cli import main
from brats_seg.core import files, runtime
assert files.fcntl is None and not runtime.set_allocator()

def run(*argv):
    try:
        main(list(argv))
    except SystemExit as ended:
        assert not ended.code, (argv, ended.code)

run("phantom", "scans", "--cases", "3", "--size", "48", "--layout", "brats2021")
run("verify", "scans")
run("preprocess", "scans", "bank", "--workers", "1", "--folds", "2")
run("predict", "starter", "scans", "out", "--device", "cpu", "--precision", "float32")
run("evaluate", "out", "scans")
print(len(names), "modules")
"""


def test_every_module_is_imported_and_four_verbs_run_without_what_only_linux_has(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_LINUX],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    n_modules = sum(1 for path in (ROOT / "brats_seg").rglob("*.py") if path.name != "__init__.py")
    assert int(ended.stdout.split()[-2]) >= n_modules
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 3
    assert (tmp_path / "out" / "scores.csv").is_file()
