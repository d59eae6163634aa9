"""Memory that a command keeps."""

import contextlib

RETURN = "--return-memory"
_kept = False


def keep() -> None:
    """Keeps the memory of freed arrays, where the C library can."""
    import jaxbn  # what only prints a usage, or waits for a child, does without JAX

    global _kept
    with contextlib.suppress(NotImplementedError):
        jaxbn.keep_freed_memory()
        _kept = True


def kept() -> bool:
    """Tells whether `keep` was called, and did."""
    return _kept
