"""What a plain `transformers.Trainer` needs beside it to train a mixture."""

from typing import Any

from transformers import TrainerCallback


class RouterStepCallback(TrainerCallback):
    """Tells the model the training step, which its routing noise is drawn from, so that a resumed run draws the noise of an unbroken one.

    For models with `set_router_step`, adapters on them included: `Trainer(model, ..., callbacks=[RouterStepCallback()])`.
    """

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kwargs["model"].set_router_step(state.global_step * args.gradient_accumulation_steps)  # each forward counts on from there
