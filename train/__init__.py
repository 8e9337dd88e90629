import moe_kernels  # noqa: F401  before bitsandbytes, whose warning at import it silences
