"""Memory that a process frees stays with it: what a benchmark times is then the work, not fresh pages.

glibc gives arrays of more than 32 MiB back to the system when they are freed and asks for new pages at the next call.
On a virtual machine those may have to come from its host: a call that writes 100 MB was seen to take twice to four
times as long, at random, and differently for each contestant. All contestants of a process keep their memory alike.
"""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def keep_memory():
    """Serve every allocation from the heap and never shrink it; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
