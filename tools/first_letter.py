"""Seconds until a verb writes its first letter to a terminal of 80 columns, and until it ends.

python tools/first_letter.py verify scans
"""

import fcntl
import os
import pty
import struct
import sys
import termios
import time

import typer


def main(words: list[str]) -> None:
    """Run `brats-seg WORDS` in a terminal, show what it writes, and print both times."""
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
        first = first or time.monotonic() - start
        sys.stdout.write(written.decode(errors="replace"))
    os.waitpid(child, 0)
    print(f"\nfirst letter {first or float('nan'):.2f} s, end {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    typer.run(main)
