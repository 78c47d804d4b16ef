"""What is on disk is whole, and nobody else is writing it."""

import errno
import fcntl
import multiprocessing
import os
import pickle
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from brats_seg.core.errors import InputError
from brats_seg.core.files import (
    atomic,
    lock,
    parse_yaml,
    read_json,
    read_table,
    read_text,
    sha256,
    shown,
    write_json,
    write_text,
)


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


def test_a_killed_writer_leaves_the_old_file_and_a_rest_that_the_next_writer_removes(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    process = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(tmp_path / "a",))
    process.start()
    process.join()
    assert (tmp_path / "a").read_text() == "old"
    rest = [p.name for p in tmp_path.iterdir() if p.name != "a"]
    assert len(rest) == 1
    assert re.fullmatch(rf"\.a\.[0-9a-f]{{4}}-{process.pid}\.\d+\.part", rest[0])
    write_text(tmp_path / "a", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


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


@pytest.mark.parametrize("content", [None, b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5000, b""])
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
        with (
            lock(tmp_path / "l"),
            pytest.raises(InputError, match="held by another process"),
            lock(tmp_path / "l"),
        ):
            pass
        with lock(tmp_path / "l", holders="shared"), lock(tmp_path / "l", holders="shared"):
            pass
        with (
            lock(tmp_path / "l", holders="shared"),
            pytest.raises(InputError, match="held by another"),
            lock(tmp_path / "l"),
        ):
            pass


def test_a_file_system_without_locks_is_not_called_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_here(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none_here)
    with (
        pytest.raises(InputError, match=r"l: its file system has no locks \(No locks available\)"),
        lock(tmp_path / "l"),
    ):
        pass


def test_a_full_disk_names_the_file_and_leaves_no_half(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic(tmp_path / "a") as part:
            part.write_text("half")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left") as raised:
        write_half()
    assert raised.value.filename == str(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_the_rest_of_a_process_that_lives_is_kept(tmp_path: Path) -> None:
    with atomic(tmp_path / "a") as part:
        part.write_text("one")
        write_from_a_thread = ThreadPoolExecutor(1).submit(write_text, tmp_path / "a", "other")
        write_from_a_thread.result()
        assert part.read_text() == "one"


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for read in (read_json, read_text, read_table):
        with pytest.raises(InputError, match=r"a\.json: cannot be read: not a regular file"):
            read(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,\xff\n", "not text in UTF-8"),
        (b"a,b\n1,2,3\n", "line 2 has 3 cells for 2 columns"),
        (b"a,b\n1\n", "line 2 has 1 cells for 2 columns"),
        (b'a,b\n1,"2\n', "not a table: unexpected end of data"),
        (b"a,b\n1," + b"x" * 200_000, "not a table: field larger than field limit"),
    ],
)
def test_what_is_no_table_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"a\.csv: .*{said}"):
        read_table(tmp_path / "a.csv")


def test_a_table_with_a_byte_order_mark_short_rows_and_commas_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfa,b\r\n1\r\n\r\n2,3,,\r\n")
    assert read_table(tmp_path / "a.csv", short_rows="fill") == (
        ("a", "b"),
        [{"a": "1", "b": ""}, {"a": "2", "b": "3"}],
    )


NINE = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9))
"""350 bytes that stand for 43 million values."""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (NINE, "anchors"),
        ("a: *b", "anchors"),
        ("[" * 5000, "nested too deep"),
        ("a: 1" + ":1" * 10_000, "a value of 20,001 characters"),
        ("a: " + "9" * 5000, "limit"),
        ("? {a: 1}\n: 2", "unhashable"),
        ("a: 0x" + "f" * 5000, "beyond 64 bits"),
        ("x" * 300_000, "262,144 at most"),
    ],
)
def test_hostile_yaml_is_refused_at_once(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        parse_yaml(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "value",
    [1 << 40_000, "x" * 10**6, [[[[["x" * 1000] * 1000]]]], {i: "y" * 1000 for i in range(1000)}],
    ids=["number", "text", "deep", "wide"],
)
def test_a_value_is_shown_in_a_few_words(value: object) -> None:
    assert len(shown(value)) <= 120


def test_an_error_is_lines_that_a_terminal_can_show() -> None:
    error = InputError("a\x1b[2J\udcff: " + "x" * 5000 + "; give the right file", "b: wrong")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(InputError("two\nlines: wrong")) == "two\\nlines: wrong"
    said = str(error)
    assert said.startswith("a\\x1b[2J\\udcff: xxx")
    assert said.endswith("; give the right file\nb: wrong")
    assert [len(line) for line in said.split("\n")] == [400, 8]


def test_without_fcntl_a_shared_lock_is_held_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("brats_seg.core.files.fcntl", None)
    with (
        lock(tmp_path / "l"),
        pytest.raises(InputError, match="held by another process"),
        lock(tmp_path / "l", holders="shared"),
    ):
        pass
