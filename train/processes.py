"""One command in several processes, as `torchrun` and `accelerate launch` start them: who writes and speaks, and how all end.

Every process does the same work up to the first batch; the first alone prints, writes and fills caches. A mistake that all of them find is
said once, by the first. What ends one process ends all: the launcher does that, and names the cause.
"""

import argparse
import contextlib
import os
from collections.abc import Callable
from datetime import timedelta
from typing import cast

import torch
from accelerate import PartialState
from torch import distributed
from torch.distributed.elastic.multiprocessing.errors import record
from transformers.utils import logging

from model.cli import is_first_process, run_command

LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")  # what a launcher sets, by which a process knows the others
TIMEOUT = timedelta(minutes=30)  # the first process may train the embedded base while the others wait


def processes() -> PartialState:
    """This process among those of the run, which meet at the first call; without a launcher it is the only one."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def local_processes() -> int:
    """How many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def run_in_all(command: Callable[[argparse.Namespace], object], parser: argparse.ArgumentParser) -> int:
    """`run_command` in each process of a launcher, or in this one."""

    def together(args: argparse.Namespace) -> None:
        processes()  # before a model is loaded, as each gets its own card
        command(args)

    with contextlib.ExitStack() as stack:
        if not is_first_process():
            logging.disable_progress_bar()
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        # torchrun then shows the exception of the process that failed first
        status = cast(int, record(run_command)(together, parser))
    if status == 0 and distributed.is_initialized():
        distributed.destroy_process_group()  # not after an error, as it would wait for the others
    return status
