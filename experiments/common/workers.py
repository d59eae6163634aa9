"""Processes that measure beside each other.

Threads would wait for one another: tracing a program holds the interpreter's lock.
"""

import multiprocessing
import os
import signal
import threading
from concurrent import futures


class Workers:
    """Runs functions in `count` processes of their own. Use it with `with`.

    One worker is a thread of this process instead: nothing has to be started.
    """

    def __init__(self, count: int):
        self._pool: futures.Executor
        if count == 1:
            self._pool = futures.ThreadPoolExecutor(1)
            return
        # A fork of a process with threads, as jax has them, may hang.
        context = multiprocessing.get_context("spawn")
        self._pool = futures.ProcessPoolExecutor(count, context, initializer=_prepare)

    def __enter__(self) -> futures.Executor:
        return self._pool

    def __exit__(self, kind, error, trace) -> None:
        at_once = kind is not None and issubclass(kind, KeyboardInterrupt)
        if at_once:
            for process in multiprocessing.active_children():
                process.terminate()
        self._pool.shutdown(wait=not at_once, cancel_futures=True)


def _prepare() -> None:
    """Leaves Ctrl-C to the parent, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent:
        parent.join()
        os._exit(1)
