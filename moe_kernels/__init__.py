"""Operators of a mixture of experts on 4-bit weights: NF4, routing, grouping, experts. Nothing of transformers is needed.

Every operator but quantising has a reference in plain torch that reads like its formula; faster implementations stand behind the same
function. Quantising is done by the C++ extension on a CPU, and by bitsandbytes on a GPU or without the extension.
"""

import logging

# On a CPU with AVX512-BF16 bitsandbytes warns at its import of a kernel that it cannot fetch from the hub; nothing here would use it.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
