"""Spoiled files by the thousand: each is read in a forked process, and what became of it is counted.

    python tests/hostile/campaign.py OUT --mutants 4500 [--only nifti,png]

OUT/counts.json says how far each kind is and what was found, so that the same command goes on where it was;
OUT/found/ keeps the spoiled files that were neither read nor refused in one line.
"""

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import targets

from brats_seg.core.errors import LONGEST_LINE, InputError, UsageError

GOOD = ("read", "refused")
"""What may become of a spoiled file. The others: traceback, long line, wrong, memory, hang, crash; and peer,
where only the reader that is compared with dies."""
PATIENCE_S = 10.0
STARVED = 12
"""Times `PATIENCE_S` after which a process hangs though it has used no time, such as one that waits for a
pipe.
"""
MEMORY_BYTES = 2 << 30
AT_ONCE = 250
"""Files that one forked process reads."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--mutants", type=int, default=200, help="of each kind of file")
    parser.add_argument("--only", default="", help="kinds, by comma")
    asked = parser.parse_args()
    (asked.out / "found").mkdir(parents=True, exist_ok=True)
    shutil.rmtree(asked.out / "files", ignore_errors=True)
    kinds = targets.make_targets(asked.out / "files")
    counts: dict[str, dict[str, int]] = {}
    if (asked.out / "counts.json").exists():
        counts = json.loads((asked.out / "counts.json").read_text())
    for name, target in kinds.items():
        if asked.only and name not in asked.only.split(","):
            continue
        sound = target.path.read_bytes()
        done = Counter(counts.get(name, {}))
        while (first := done.total()) < asked.mutants:
            last = min(first + AT_ONCE, asked.mutants)
            done.update(_some(name, target, sound, range(first, last), found=asked.out / "found"))
            counts[name] = dict(done)
            (asked.out / "counts.json").write_text(json.dumps(counts, indent=1))
        target.path.write_bytes(sound)
        print(f"{name}: {dict(done)}", flush=True)


def mutant(name: str, target: targets.Target, sound: bytes, number: int) -> bytes:
    """The spoiled file of a number."""
    return target.mutate(sound, random.Random(f"{name} {number}"))


def _some(name: str, target: targets.Target, sound: bytes, numbers: range, *, found: Path) -> Counter[str]:
    """What became of each of some files; a process that dies or stands still costs one of them."""
    fates: Counter[str] = Counter()
    following = numbers.start
    while following < numbers.stop:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _serve(name, target, sound, range(following, numbers.stop), writer)
        os.close(writer)
        lines, ended = _listen(reader, child)
        os.close(reader)
        _, status = os.waitpid(child, 0)
        is_read = False
        for line in lines:
            number, fate, said = line.split("\t", 2)
            is_read = fate == "read, and now compared"
            if is_read:
                continue
            fates[fate] += 1
            following = int(number) + 1
            if fate not in GOOD:
                _keep(
                    found, name, following - 1, mutant(name, target, sound, following - 1), f"{fate}\n{said}"
                )
        if following < numbers.stop:
            fate = "peer" if is_read else "hang" if ended == "hang" else "crash"
            fates[fate] += 1
            if fate != "peer":
                _keep(
                    found, name, following, mutant(name, target, sound, following), f"{fate}\nstatus {status}"
                )
            following += 1
    return fates


def _listen(reader: int, child: int) -> tuple[list[str], str]:
    """The lines of a process, until it ends or says nothing for `PATIENCE_S`: of its own time, where the
    machine has other work.
    """
    said = b""
    heard_at, used_by_then = time.monotonic(), 0.0
    while True:
        ready, _, _ = select.select([reader], [], [], PATIENCE_S)
        used = _processor_s(child)
        if not ready:
            if used - used_by_then < 0.9 * PATIENCE_S and time.monotonic() - heard_at < STARVED * PATIENCE_S:
                continue
            os.kill(child, signal.SIGKILL)
            return said.decode().splitlines(), "hang"
        heard_at, used_by_then = time.monotonic(), used
        piece = os.read(reader, 1 << 16)
        if not piece:
            return said.decode().splitlines(), "end"
        said += piece


def _processor_s(child: int) -> float:
    """Seconds of processor time that a process has used."""
    fields = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(name: str, target: targets.Target, sound: bytes, numbers: range, writer: int) -> None:
    """The life of a forked process: spoil, read, say."""
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, -1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in numbers:
        target.path.write_bytes(mutant(name, target, sound, number))
        fate, said, value = _fate(target)
        if fate == "read" and target.compare is not None:
            os.write(writer, f"{number}\tread, and now compared\t\n".encode())
            fate, said = _compared(target, value)
        os.write(
            writer, f"{number}\t{fate}\t{' | '.join(said.splitlines())[-2000:]}\n".encode(errors="replace")
        )
    os._exit(0)


def _fate(target: targets.Target) -> tuple[str, str, Any]:
    try:
        value = target.read()
    except (InputError, UsageError) as error:
        line = str(error)
        if "\n" in line or len(line) > LONGEST_LINE or not line.isprintable():
            return "long line", line, None
        return ("memory" if "memory" in line else "refused"), line, None
    except MemoryError:
        return "memory", traceback.format_exc(), None
    except BaseException:
        return "traceback", traceback.format_exc(), None
    return "read", "", value


def _compared(target: targets.Target, value: Any) -> tuple[str, str]:
    assert target.compare is not None
    try:
        return ("read" if target.compare(value) else "wrong"), ""
    except MemoryError:
        return "peer", ""
    except BaseException:
        return "traceback", traceback.format_exc()


def _keep(found: Path, name: str, number: int, content: bytes, said: str) -> None:
    (found / f"{name} {number}").write_bytes(content)
    (found / f"{name} {number}.txt").write_text(said)


if __name__ == "__main__":
    start = time.monotonic()
    main()
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
