"""Runs training commands in turn, for the tests that start this file with torchrun: starting Python takes longer than they do.

The argument is JSON: a list of [module, arguments, harm]; harm is null, or {"rank", "step", "how"}: "kill" or "nan".
"""

import importlib
import json
import os
import signal
import sys

from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from torch import distributed

from train import trainer


def harm(step: int, how: str) -> None:
    """Makes this process lose its life, or its numbers, at a step."""
    training_step = trainer.Trainer.training_step

    def harmed(self, *args, **kwargs):
        loss = training_step(self, *args, **kwargs)
        if self.state.global_step != step:
            return loss
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return loss * float("nan")

    trainer.Trainer.training_step = harmed


def shard_on_the_cpu() -> None:
    """Lets accelerate do on a CPU what it does on cards alone: FSDP2, if the environment asks for it."""
    begin = AcceleratorState.__init__

    def begun(self, *args, fsdp_plugin=None, **kwargs):
        begin(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        self.fsdp_plugin = fsdp_plugin or getattr(self, "fsdp_plugin", None)
        if self.fsdp_plugin is not None:
            self.distributed_type = DistributedType.FSDP

    AcceleratorState.__init__ = begun


shard_on_the_cpu()
distributed.destroy_process_group = lambda: None  # gloo does not always find the others again for the next command
for module, arguments, planned in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    if planned and int(os.environ["RANK"]) == planned["rank"]:
        harm(planned["step"], planned["how"])
    if status := importlib.import_module(module).main():
        sys.exit(status)
