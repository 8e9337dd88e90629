"""How many tokens a second."""

from eval.cost import speed


def test_tokens_are_over_all_of_the_time() -> None:
    assert speed(30, 2.0, 5) == {"generated_tokens": 30, "generation_seconds": 2.0, "tokens_per_second": 15.0, "batch_size": 5}
