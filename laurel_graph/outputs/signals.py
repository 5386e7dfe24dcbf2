"""Signals that end a process let it clean up first."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ENDING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class _Ended(BaseException):
    """Unwinds the stack of a process that a signal ends."""


@contextmanager
def unwinding() -> Iterator[None]:
    """A context in which SIGTERM and SIGHUP unwind the stack, as Ctrl-C does, and then end the process as ever.

    Only signals that would end the process at once are taken over, for the duration and in the main thread: a handler
    of the program's own stays and decides, and an ignored signal stays ignored (``nohup``).
    """
    ended: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if not ended:  # a second one does not disturb the cleaning up
            ended.append(number)
            raise _Ended

    main = threading.current_thread() is threading.main_thread()
    taken = [number for number in _ENDING if main and signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in taken:
            signal.signal(number, handle)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        if ended:
            os.kill(os.getpid(), ended[0])
