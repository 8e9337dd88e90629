"""What every command of the project shares: how it starts, how it fails, and which seed it takes.

A user's mistake is a `ValueError` (or what the system refuses: a missing file, a full or read-only disk) with one clear sentence: it
goes to stderr and the exit status is 2. With MOE_TRACEBACK=1 in the environment the traceback comes before it; other exceptions always keep
theirs. Ctrl-C and SIGTERM end a command with 130 and 143, once what it had begun to write is removed.
What reads the output may end before it, as `head -1` does: that is no error to speak of.
Of several processes that a launcher started, the first speaks.
"""

import argparse
import os
import re
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from moe_kernels.backend import PRECISIONS

from .flags_file import printed_config, with_config
from .stopping import Terminated, stoppable
from .strict_json import shown

MISTAKES = (ValueError, FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError)
NO_SPACE = 28  # errno.ENOSPC
_SAID = 1000  # characters of what argparse says, which quotes the value
IN_LIBRARIES = re.compile(r"\(os error \d+\)")  # how Rust's libraries (safetensors, tokenizers) pass a system's error on, as text
# No flag means anything beyond: a larger float overflows in fp32 once it is multiplied, a larger seed is none of numpy's.
LARGEST = {float: 1e9, int: 2**32 - 1}
COLDEST = 1e-4  # of temperatures: logits are divided by it, in fp32
GRACE = 20.0  # seconds; torchrun ends the other processes within half a second of the first, on a busy machine in five and more
# How it reads where the number is lost: safetensors and tokenizers pass the system's error on as text; torch.save's
# writer says one of the others. (Reading a damaged file has other words.)
NO_SPACE_TEXTS = (f"os error {NO_SPACE})", os.strerror(NO_SPACE), "PytorchStreamWriter failed", "unexpected pos", "iostream error")


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults where there is one and the text does not say it, and keeps the line breaks of the description."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default is None or "(default" in (action.help or "")
        return action.help if said else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """Takes no abbreviated flag: `--conf FILE` would be parsed, but not read (`flags_file.with_config`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        _let_the_first_speak()
        super().error(message if len(message) <= _SAID else f"{message[:_SAID]}...")


def is_first_process() -> bool:
    """Whether this process is the first of those that a launcher (torchrun, accelerate) started, or was started alone."""
    return os.environ.get("RANK", "0") == "0"


def _let_the_first_speak() -> None:
    """Waits in all other processes: if the first meets the same mistake, the launcher ends them before they repeat it."""
    if not is_first_process():
        time.sleep(GRACE)


def make_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """A parser with the house's formatting and the `--seed` that every command has."""
    parser = Parser(prog=f"python -m {prog}", description=description, formatter_class=Formatter)
    parser.add_argument("--seed", type=int, default=0, help="of every random draw")
    return parser


def add_precision(parser: argparse.ArgumentParser) -> None:
    """The flag `--precision` of commands that run a mixture."""
    text = "of products with 4-bit weights on a CPU: int8 quantises activations in blocks of 64; it is faster and less exact"
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help=text)


def check_sampling(temperature: float, top_p: float) -> None:
    """ValueError for a temperature or a nucleus that nothing can be drawn with."""
    if not (temperature == 0 or temperature >= COLDEST):
        raise ValueError(f"--temperature must be 0, for the likeliest token, or at least {COLDEST}, not {temperature}")
    if not 0 < top_p <= 1:
        raise ValueError(f"--top-p must lie in (0, 1], not {top_p}")


def check_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """ValueError for the first flag whose number is infinite, none, or beyond the `LARGEST`; commands check their own flags' ranges."""
    for action in parser._actions:
        value, largest = getattr(args, action.dest, None), LARGEST.get(action.type)  # type: ignore[call-overload]
        if largest and isinstance(value, int | float) and not -largest <= value <= largest:
            name = action.option_strings[-1] if action.option_strings else action.dest
            raise ValueError(f"{name} is {shown(value, 40)}; it must be a finite number of at most {largest}")
        if action.dest == "seed" and isinstance(value, int) and value < 0:
            raise ValueError(f"--seed is {value}; it must not be negative")


def run_command(command: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Runs `command` on the parsed `argv` (default: this process's); returns the exit status."""
    args = argparse.Namespace()
    try:
        args = parser.parse_args(with_config(parser, sys.argv[1:] if argv is None else argv))
        check_numbers(parser, args)
        if (config := printed_config(parser, args)) is not None:
            print(config, end="")
            return 0
        with stoppable() as came, _quiet_threads(came):
            command(args)
        sys.stdout.flush()
    except Exception as error:  # of a class of its own in each library; tokenizers' is Exception itself
        if isinstance(error, BrokenPipeError) and _readers_have_gone():
            return 128 + signal.SIGPIPE
        if (sentence := _sentence_of(error, getattr(args, "out", None))) is None:
            raise
        _let_the_first_speak()
        return say_mistake(f"{parser.prog}: {sentence}")
    except Terminated:
        print(f"{parser.prog}: terminated", file=sys.stderr)
        return 128 + signal.SIGTERM
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BaseException as error:  # a panic of a library's Rust code, as where tokenizers gives up on a pattern, is no Exception
        if type(error).__name__ != "PanicException":
            raise
        return say_mistake(f"{parser.prog}: {' '.join(str(error).split())}")
    return 0


def say_mistake(sentence: str) -> int:
    """Says it, with the traceback of the error that is being handled where asked for; returns the exit status."""
    if os.environ.get("MOE_TRACEBACK") == "1":
        traceback.print_exc()
    print(sentence, file=sys.stderr)
    return 2


@contextmanager
def _quiet_threads(came: list[type[KeyboardInterrupt]]) -> Iterator[None]:
    """Within it a thread says nothing once the command was stopped, nor of a full disk: the command says that in one sentence.

    TensorBoard's thread hands its error on to the command, or finds that the command has removed its folder.
    """
    show = threading.excepthook
    threading.excepthook = lambda args: None if came or (args.exc_value and _disk_is_full(args.exc_value)) else show(args)
    try:
        yield
    finally:
        threading.excepthook = show


def _sentence_of(error: Exception, out: object) -> str | None:
    """What is said of a user's mistake or a system that refuses, naming the file or the output `out`; None for any other error."""
    name = getattr(error, "filename", None)
    if _disk_is_full(error):
        return f"no space left on the disk: {name or out or error}"
    if getattr(error, "errno", None) is not None or IN_LIBRARIES.search(str(error)):
        return str(error) if name or out is None else f"{error}: {out}"
    return str(error) if isinstance(error, MISTAKES) else None


def _readers_have_gone() -> bool:
    """Whether what read standard output or error has ended; what is left to say then goes nowhere: Python's last flush must not fail."""
    poll = select.poll()
    for number in (1, 2):
        poll.register(number, 0)  # POLLERR, which a pipe without a reader has, is always told
    gone = [number for number, event in poll.poll(0) if event & select.POLLERR]
    for number in gone:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(gone)


def _disk_is_full(error: BaseException) -> bool:
    return getattr(error, "errno", None) == NO_SPACE or any(text in str(error) for text in NO_SPACE_TEXTS)
