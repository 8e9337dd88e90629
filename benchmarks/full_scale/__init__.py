"""Composing, loading and running a mixture of Mistral-7B's size on a CPU: `python -m benchmarks.full_scale`."""
