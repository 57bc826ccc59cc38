"""Large blocks of memory go back to the system when they are freed."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h.
M_MMAP_THRESHOLD = -3
LARGE_BYTES = 2**20


def return_large_blocks() -> None:
    """Let malloc map every large block by itself; without effect where malloc is not glibc's.

    Left alone, glibc takes blocks of up to 32 MiB from its heap once one of that size was freed. Batches and shards
    then leave holes there that the next ones do not fit, and the heap grows with the number of rows.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE_BYTES)
