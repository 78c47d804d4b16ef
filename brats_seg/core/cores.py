"""How many cores this process may use, without importing a library of networks."""

import os


def n_cores() -> int:
    """Cores that this process may use, or where the system cannot say (macOS, Windows), all of the
    machine.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
