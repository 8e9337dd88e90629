import os

if os.environ.get("RANK", "0") != "0":
    os.environ.setdefault("TQDM_DISABLE", "1")  # of several processes the first shows its progress; tqdm reads this when it is imported

import moe_kernels  # noqa: F401  before bitsandbytes, whose warning at import it silences
