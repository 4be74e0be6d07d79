"""SIGINT and SIGTERM: the first of them ends a job, whatever it is doing, within seconds.

Both raise a `KeyboardInterrupt` in the main thread. That alone is not enough. A library may take over the handler, drop
the exception where none can be raised (in ``__del__``, in a callback from C), or keep the main thread in C for minutes,
where no Python handler runs. So the signal is also noted by a thread, which ends the process when the main thread has
not done so in time. Nothing is lost by that which a kill would not lose, and every job goes on after a kill.
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
"""How long a job may take to end by itself, and to commit what is done."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_AGAIN_SECONDS = 0.1


class _State:
    """Of this process, which has one main thread.

    Attributes:
        listening: whether `listen` was called.
        begun: whether the main thread has been interrupted and nobody has answered to it.
        ending: whether the job is over, so that nothing is left to interrupt.
        last_words: status and line of a process that is ended because its main thread does not end it.
        answered: tells the thread that waits that the interruption was answered to.
    """

    def __init__(self) -> None:
        self.listening = self.begun = self.ending = False
        self.last_words = (STATUS, MESSAGE)
        self.answered = threading.Event()


_state = _State()


def listen() -> None:
    """Makes the signals interrupt this process, which runs a job. To be called once, by the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    _state.listening = True
    reinstall()
    # Written to by the signal's own handler, also while the main thread is in C.
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    sys.unraisablehook = _unraisable
    threading.Thread(target=_watch, args=(reader,), name="interruption", daemon=True).start()


def reinstall() -> None:
    """Takes the handlers back from a library that has put in its own; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        # What a shell starts in the background, or nohup, is not to be stopped by the terminal's Ctrl-C.
        if number == signal.SIGTERM or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt if _state.listening else signal.default_int_handler)


def begun() -> bool:
    """Whether the main thread was interrupted and has not answered to it: what it raises since then follows from it."""
    return _state.begun


def answer() -> None:
    """Says that the interruption has done its work, and that the process lives on; the next one is a new one."""
    _state.answered.set()
    _state.begun = False


def end(status: int) -> None:
    """Says that the job is over: signals no longer interrupt the main thread, which only has to leave with ``status``.

    A signal still bounds the time that it takes to leave.
    """
    _state.ending = True
    _state.last_words = (status, "")


@contextlib.contextmanager
def shielded_children() -> Iterator[None]:
    """Keeps the terminal's Ctrl-C, which goes to a whole process group, from the processes that the block starts.

    Who starts them has to end them when it is interrupted itself.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def stop_main(line: str) -> None:
    """Interrupts the main thread, from another one.

    Args:
        line: what the process says, with status 2, where the main thread does not end it in time.
    """
    _state.last_words = (2, line)
    main = threading.main_thread().ident
    number = signal.SIGTERM if _state.listening else signal.SIGINT
    if main is not None and callable(signal.getsignal(number)):
        signal.pthread_kill(main, number)  # also out of a system call that waits


def _interrupt(_signum: int, _frame: Any) -> None:
    # Once: another one would interrupt the first one's clean-up.
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
        while select.select([reader], [], [], 0)[0]:  # what came between the first and the answer was not another one
            os.read(reader, 4096)
