"""What a run of the evaluation took beside `model.cost`: precision, and tokens per second."""

from typing import Any


def precision_facts(model: Any) -> dict[str, Any]:
    """The dtype that the model computes in, and "nf4" if its matrices are kept in that."""
    return {"dtype": str(model.dtype).removeprefix("torch."), "quantization": getattr(model.config, "quantization", None)}


def speed(tokens: int, seconds: float, batch_size: int) -> dict[str, Any]:
    """Of completions: tokens, EOS included and padding not, over the wall time of reading the prompts and generating, by batch size."""
    rate = tokens / seconds if seconds else None
    return {"generated_tokens": tokens, "generation_seconds": seconds, "tokens_per_second": rate, "batch_size": batch_size}
