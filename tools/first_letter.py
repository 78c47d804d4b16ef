"""Seconds, by the clock and of processor, until a verb writes its first letter to a terminal of 80 columns,
and seconds until it ends.

python tools/first_letter.py verify scans
"""

import fcntl
import os
import pty
import struct
import sys
import termios
import time
from pathlib import Path

import typer


def processor_s(process: int) -> float:
    """Seconds of the processor that a process has used, those of its threads among them."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main(words: list[str]) -> None:
    """Run `brats-seg WORDS` in a terminal, show what it writes, and print the times."""
    start, first = time.monotonic(), None
    child, terminal = pty.fork()
    if child == 0:
        os.execv(sys.executable, [sys.executable, "-m", "brats_seg", *words])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    while True:
        try:
            written = os.read(terminal, 1 << 16)
        except OSError:  # the terminal of a process that has ended
            break
        if not written:
            break
        first = first or (time.monotonic() - start, processor_s(child))
        sys.stdout.write(written.decode(errors="replace"))
    os.waitpid(child, 0)
    clock, processor = first or (float("nan"),) * 2
    print(
        f"\nfirst letter {clock:.2f} s ({processor:.2f} s of the processor), "
        f"end {time.monotonic() - start:.1f} s"
    )


if __name__ == "__main__":
    typer.run(main)
