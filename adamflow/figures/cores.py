"""Which processor cores a process may use, and how figures that are made at once share them.

Two programs with threads on all cores keep each other waiting: together they take a third longer than on a core each.
"""

import os
from concurrent.futures import ThreadPoolExecutor


def available() -> list[int]:
    """The cores that this process may run on; where the system does not tell, all."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def threads() -> ThreadPoolExecutor:
    """As many threads as there are cores, for work inside a figure; jax and NumPy let others run while they work."""
    return ThreadPoolExecutor(len(available()))


def workers(count: int) -> ThreadPoolExecutor:
    """So many threads to start programs from, which run on this thread's share of the cores only (on Linux)."""
    own = available()
    shares = [own[place::count] or own for place in range(count)]

    def keep_to_share() -> None:
        if hasattr(os, "sched_setaffinity"):
            # 0 is this thread; the programs that it starts inherit the setting.
            os.sched_setaffinity(0, shares.pop())

    return ThreadPoolExecutor(count, initializer=keep_to_share)
