"""SIGINT and SIGTERM: the first signal ends a job within seconds, whatever it is doing.

Both signals raise a `KeyboardInterrupt` in the main thread, which is not always enough. A library may replace the
handler, drop the exception where none can be raised (in ``__del__``, in a callback from C), or keep the main thread in
C for minutes, where no Python handler runs. Therefore a thread also receives the signal, and ends the process if the
main thread does not end it in time. This loses no more than a kill, and every job continues after a kill.
"""

from __future__ import annotations

import _thread
import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

STATUS = 130
MESSAGE = "interrupted; the same command goes on from here"
SECONDS = 10.0
"""Seconds that a job may take to commit its results and to end by itself."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.1


class _State:
    """The state of this process, which has one main thread.

    Attributes:
        listening: Whether `listen` was called.
        begun: Whether the main thread has been interrupted, and `answer` has not been called since.
        ending: Whether the job is over, so that nothing is left to interrupt.
        last_words: Exit status and message of a process whose main thread does not end it in time.
        answered: Set by `answer`, for the thread that would end the process.
    """

    def __init__(self) -> None:
        self.listening = self.begun = self.ending = False
        self.last_words = (STATUS, MESSAGE)
        self.answered = threading.Event()


_state = _State()


def listen() -> None:
    """Makes the signals interrupt this process, which runs a job. The main thread calls it once."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _state.listening = True
    reinstall()
    # The signal handler in C writes to this file even while the main thread is in C.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_watch, args=(reader,), name="interruption", daemon=True).start()


def reinstall() -> None:
    """Replaces the handlers that a library has installed; other threads than the main one cannot, and do nothing."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        # A job that a shell or nohup started in the background ignores the terminal's Ctrl-C, and continues to.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt if _state.listening else signal.default_int_handler)


def begun() -> bool:
    """Whether the main thread was interrupted and `answer` was not called; later exceptions are then a consequence."""
    return _state.begun


def answer() -> None:
    """Declares that the interruption has been handled and the process continues; the next signal is a new one."""
    _state.answered.set()
    _state.begun = False


def end(status: int) -> None:
    """Declares that the job is over, so that signals no longer interrupt the main thread.

    After a signal the process still exits with ``status`` within `SECONDS`.
    """
    _state.ending = True
    _state.last_words = (status, "")


@contextlib.contextmanager
def shielded_children() -> Iterator[None]:
    """Keeps the terminal's Ctrl-C, which goes to a whole process group, from the processes that the block starts.

    The caller has to end them when it is interrupted itself.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stop_main(line: str) -> None:
    """Interrupts the main thread from another thread.

    Args:
        line: The message of the process, which exits with status 2, if the main thread does not end it in time.
    """
    _state.last_words = (2, line)
    main = threading.main_thread().ident
    number = signal.SIGTERM if _state.listening else signal.SIGINT
    if main is not None and callable(signal.getsignal(number)):
        signal.pthread_kill(main, number)  # this also ends a system call that waits


def _interrupt(_signum: int, _frame: Any) -> None:
    # A second exception would interrupt the clean-up after the first.
    if not _state.begun and not _state.ending:
        _state.begun = True
        raise KeyboardInterrupt


def _unraisable(unraisable: Any) -> None:
    if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
        threading.Timer(_AGAIN_SECONDS, _interrupt_again).start()
    else:
        sys.__unraisablehook__(unraisable)


def _interrupt_again() -> None:
    _state.begun = False
    _thread.interrupt_main(signal.SIGTERM)


def _watch(reader: int) -> None:
    while True:
        if not set(os.read(reader, 4096)) & set(_SIGNALS):
            continue
        if not _state.answered.wait(SECONDS):
            status, line = _state.last_words
            os.write(2, f"{line}\n".encode() if line else b"")
            os._exit(status)
        _state.answered.clear()
        while select.select([reader], [], [], 0)[0]:  # signals before the answer belong to the same one
            os.read(reader, 4096)
