"""What a run of the evaluation took beside `model.cost`: tokens per second."""

from typing import Any


def speed(tokens: int, seconds: float, batch_size: int) -> dict[str, Any]:
    """Of completions: tokens, EOS included and padding not, over the wall time of reading the prompts and generating, by batch size."""
    rate = tokens / seconds if seconds else None
    return {"generated_tokens": tokens, "generation_seconds": seconds, "tokens_per_second": rate, "batch_size": batch_size}
