"""Memory that a program keeps between calls."""

import ctypes
import platform

# Parameters of mallopt(3); the largest value is that of a C int. One heap for all
# threads, because those of other threads hold at most 64 MB and return what is larger.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8
_SETTINGS = {
    _MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26, _ARENA_MAX: 1
}  # fmt: skip


def keep_freed_memory() -> None:
    """Lets this process keep the memory of arrays that are freed.

    On a CPU, XLA takes large buffers from the C library and frees them at the end of
    every call. The GNU C library returns them to the system at once, so the next call
    pays for every page again: a layer of 26 MB takes 12,700 page faults a call, and
    none after this function and some twenty calls, in which the heap grows. It concerns
    all that runs in the process, other libraries included. Call it before the first
    array: threads that have begun keep heaps of their own, which return arrays above
    64 MB all the same.

    The price is that nothing is returned: the process stays as large as it ever was.
    All threads share one heap, so many that allocate small objects wait for each other.
    Accelerators have their own memory, which is not concerned.

    Raises:
        NotImplementedError: if the C library is not GNU's, as on macOS, Windows and
            Alpine Linux.

    Example:
        >>> jaxbn.keep_freed_memory()
    """
    if platform.libc_ver()[0] != "glibc":
        raise NotImplementedError(
            "`keep_freed_memory` must have the GNU C library, got "
            f"{platform.system()} without it. Leave the call out, or preload an "
            "allocator that keeps memory, as jemalloc does."
        )
    library = ctypes.CDLL(None)
    for parameter, value in _SETTINGS.items():
        library.mallopt(parameter, value)
