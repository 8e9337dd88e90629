"""One Mixtral-shaped MoE block on a CPU beside its peers: `pytest benchmarks/cpu -s`, see `benchmarks.cpu.layer`."""
