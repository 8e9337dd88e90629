"""Tokens of completions, and how many a second."""

from eval.cost import count_tokens, speed


def test_tokens_end_with_eos_and_are_over_all_of_the_time() -> None:
    assert count_tokens([[5, 6, 2, 2, 2], [5, 6, 7], [2]], eos=2) == 7
    assert speed(30, 2.0, 5) == {"generated_tokens": 30, "generation_seconds": 2.0, "tokens_per_second": 15.0, "batch_size": 5}
