"""What makes a process stop: signals, and the end of the process that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from weir_chassis.settings import ServiceSettings
from weir_chassis.telemetry import get_logger

_POLL_PARENT_SECONDS = 0.5
# After the parent's end, a process that neither drains nor stops by itself is ended, because nobody else will.
_STUCK_SECONDS = 5.0


class Stop:
    """Asked once: drain. Asked again: now."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.forced = asyncio.Event()

    def request(self) -> None:
        if self.requested.is_set():
            self.forced.set()
        self.requested.set()


@contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """SIGTERM and SIGINT ask this `Stop`. Off the main thread, where signals cannot be caught, it does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.request)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


@contextmanager
def stop_with_parent(stop: Stop, settings: ServiceSettings) -> Iterator[None]:
    """With `exit_with_parent`, asks to stop when that process is gone, and sees to it that this one does.

    A thread watches, since a stuck event loop is one of the things that must not keep an orphan alive.
    """
    if not settings.exit_with_parent:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(
        target=_watch_parent,
        args=(
            settings.exit_with_parent,
            asyncio.get_running_loop(),
            stop,
            done,
            settings.drain_seconds + _STUCK_SECONDS,
        ),
        name="watch-parent",
        daemon=True,
    )
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch_parent(
    parent: int, loop: asyncio.AbstractEventLoop, stop: Stop, done: threading.Event, stuck_after_seconds: float
) -> None:
    # By its id and not by whoever is the parent now: it may be gone before this process first looks.
    while os.getppid() == parent:
        if done.wait(_POLL_PARENT_SECONDS):
            return
    get_logger().warning("parent_gone", parent=parent)
    loop.call_soon_threadsafe(stop.request)
    if not done.wait(stuck_after_seconds):
        os._exit(1)
