"""What cards have and how fast they are, for plans made before anything runs. `benchmarks.card_model` knows more of two of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """A card by its data sheet; shares and launches are assumed, not measured."""

    name: str
    arch: int  # of the code that it runs, e.g. 86 for compute capability 8.6
    memory: float  # bytes that a process can have
    dram: float  # bytes/s, nominal
    gemm: float  # FLOP/s of cuBLAS in 16 bits with fp32 sums
    has_bf16: bool = True
    dram_share: float = 0.88  # of dram that a streaming kernel reaches
    launch: float = 2.5e-6  # s from the end of a kernel to the work of the next
    host_launch: float = 5e-6  # s that eager PyTorch needs for one operation: a step is never faster than its operations are issued
    gemm_fp32: float = float("inf")  # FLOP/s of a product in fp32
    dequantise: float = float("inf")  # NF4 values/s; of a card, memory is the limit


# gemm of the A10G is cuBLAS at 4096 cubed (zzc0721/torch-performance-test-data, issue 126); of the others, and all in fp32, 0.7 of the data
# sheet's, assumed.
T4 = Card("T4", 75, 15.6e9, 320e9, 45e12, gemm_fp32=5.7e12, has_bf16=False)
A10G = Card("A10G", 86, 23.7e9, 600e9, 62.5e12, gemm_fp32=22e12)
L4 = Card("L4", 89, 23.7e9, 300e9, 85e12, gemm_fp32=21e12)
RTX4090 = Card("4090", 89, 25.2e9, 1008e9, 115e12, gemm_fp32=58e12)
H100 = Card("H100", 90, 85.0e9, 3.35e12, 700e12, gemm_fp32=47e12)
H200 = Card("H200", 90, 150e9, 4.8e12, 700e12, gemm_fp32=47e12)
CARDS = {card.name.lower(): card for card in (T4, A10G, L4, RTX4090, H100, H200)}
