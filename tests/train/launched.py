"""Runs training commands in turn, for the tests that start this file with torchrun: starting Python takes longer than they do.

The argument is JSON: a list of [module, arguments, harm]; harm is null, or {"rank", "step", "how"}: "kill" or "nan".
"""

import importlib
import json
import os
import signal
import sys

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


distributed.destroy_process_group = lambda: None  # gloo does not always find the others again for the next command
for module, arguments, planned in json.loads(sys.argv[1]):
    sys.argv = [module, *arguments]
    if planned and int(os.environ["RANK"]) == planned["rank"]:
        harm(planned["step"], planned["how"])
    if status := importlib.import_module(module).main():
        sys.exit(status)
