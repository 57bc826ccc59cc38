"""Memory that was freed goes back to the system."""

from __future__ import annotations

import ctypes


def give_back() -> None:
    """Return the free pages of malloc's heap to the system; without effect where malloc is not glibc's.

    Blocks of batches and shards leave holes there that the next ones do not fit, so that the heap grows with the number
    of rows though nothing is kept. A call takes milliseconds. (A lower M_MMAP_THRESHOLD would do it unasked, and would
    make every large tensor of a training anew from the system.)
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
