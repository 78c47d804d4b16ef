"""What is on disk is whole, and nobody else is writing it."""

import errno
import fcntl
import multiprocessing
import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from brats_seg.core.files import atomic, lock, read_json, sha256, write_json, write_text
from brats_seg.errors import InputError


def test_a_written_file_holds_what_was_written_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, 2.5, None]}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_block_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")

    def write_half() -> None:
        with atomic(tmp_path / "a") as part:
            part.write_text("new")
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_half()
    assert (tmp_path / "a").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def _write_and_die(path: Path) -> None:
    with atomic(path) as part:
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_writer_leaves_the_old_file_and_a_recognizable_rest(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path / "a",))
    process.start()
    process.join()
    assert (tmp_path / "a").read_text() == "old"
    rest = [p.name for p in tmp_path.iterdir() if p.name != "a"]
    assert len(rest) == 1
    assert re.fullmatch(rf"\.a\.{process.pid}\.\d+\.part", rest[0])


def test_threads_that_write_one_file_at_the_same_time_do_not_meet(tmp_path: Path) -> None:
    both_write = Barrier(2, timeout=10)

    def write(text: str) -> None:
        with atomic(tmp_path / "a") as part:
            part.write_text(text)
            both_write.wait()
            assert part.read_text() == text

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, ("one", "other")))
    assert (tmp_path / "a").read_text() in ("one", "other")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no/such"):
        write_text(tmp_path / "no" / "such" / "a", "x")


def test_not_a_number_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe"])
def test_a_file_that_is_no_json_is_named(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_checksum_of_no_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert sha256(tmp_path / "a") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_a_lock_is_held_once_and_let_go(tmp_path: Path) -> None:
    for _ in range(2):
        with lock(tmp_path / "l"), pytest.raises(InputError, match="held by another process"), lock(tmp_path / "l"):
            pass
        with lock(tmp_path / "l", holders="shared"), lock(tmp_path / "l", holders="shared"):
            pass
        with lock(tmp_path / "l", holders="shared"), pytest.raises(InputError, match="held by another"), lock(tmp_path / "l"):
            pass


def test_a_file_system_without_locks_is_not_called_busy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none_here(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with pytest.raises(InputError, match=r"l: its file system has no locks \(No locks available\)"), lock(tmp_path / "l"):
        pass
