"""What SIGTERM and Ctrl-C do to a command: each is an exception, so that what it had begun to write is removed."""

import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came, as from `kill`, `timeout`, a batch system or a container that stops."""


# What a signal does by default in Python, and what it raises here.
_STOPS: dict[int, tuple[Any, type[KeyboardInterrupt]]] = {
    signal.SIGTERM: (signal.SIG_DFL, Terminated),
    signal.SIGINT: (signal.default_int_handler, KeyboardInterrupt),
}


@contextmanager
def stoppable() -> Iterator[list[type[KeyboardInterrupt]]]:
    """Within it SIGTERM raises `Terminated`, where nobody else has a use for it; what a library makes of that or of Ctrl-C is that again.

    Yields what has come. Not in a process of a launcher, which ends the others by SIGTERM when one has ended: they wait for that one in a
    collective, where Python's handlers do not run.
    """
    came: list[type[KeyboardInterrupt]] = []
    if "RANK" in os.environ or threading.current_thread() != threading.main_thread():
        yield came
        return

    def stop(number: int, _frame: object) -> NoReturn:
        came.append(_STOPS[number][1])
        raise came[-1]

    before = {number: usual for number, (usual, _) in _STOPS.items() if signal.getsignal(number) == usual}
    for number in before:
        signal.signal(number, stop)
    try:
        yield came
    except Exception as error:  # safetensors, interrupted in a call back to Python: "could not determine the shape of object"
        if came:
            raise came[0] from error
        raise
    finally:
        for number, usual in before.items():
            signal.signal(number, usual)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Within it SIGTERM and Ctrl-C wait for its end: for code that cannot bear an exception at any place."""
    if threading.current_thread() != threading.main_thread():
        yield
        return
    came: list[int] = []

    def pass_on() -> None:
        for number in came[:1]:
            signal.raise_signal(number)

    with ExitStack() as last:  # it goes on with the others where one raises
        last.callback(pass_on)
        for number in _STOPS:
            last.callback(signal.signal, number, signal.getsignal(number))
            signal.signal(number, lambda number, _: came.append(number))
        yield


@contextmanager
def scratch_folder(prefix: str) -> Iterator[Path]:
    """Yields a folder among the system's temporary files, which one Ctrl-C, or SIGTERM where it is an exception, does not leave there.

    What still writes into it when the block ends, as threads do that a second Ctrl-C did not let end, may leave some of it.
    """
    with undisturbed():
        folder = tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True)  # goes with the object, if an exception comes here
    try:
        yield Path(folder.name)
    finally:
        with undisturbed():
            folder.cleanup()
