"""The counter-based noise: Philox against the published vectors, and the normals against their distribution."""

import math
from statistics import NormalDist

import pytest
import torch

from moe_kernels.noise import philox, standard_normal


@pytest.mark.parametrize(  # Random123 1.14, kat_vectors, "philox4x32 10"
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_known_answers_of_random123(counter, key, expected):
    words = philox(tuple(torch.tensor([word, 0]) for word in counter), key)
    assert tuple(int(word[0]) for word in words) == expected


def test_box_muller_of_two_words():
    words = philox(tuple(torch.tensor([word]) for word in (11, 0, 0, 0)), (5, 7))
    u, v = (int(words[0]) + 1) / 2**32, int(words[1]) / 2**32
    expected = math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)
    assert standard_normal(5 + (7 << 32), 3, 4)[2, 3].item() == torch.tensor(expected, dtype=torch.float64).float().item()


def test_numbers_are_normal():
    sample = standard_normal(123, 50_000, 4).flatten().double()
    assert sample.isfinite().all()
    assert abs(sample.mean()) < 4 / math.sqrt(len(sample))
    assert abs(sample.var() - 1) < 4 * math.sqrt(2 / len(sample))
    assert abs((sample**3).mean()) < 4 * math.sqrt(15 / len(sample))
    assert abs((sample**4).mean() - 3) < 4 * math.sqrt(96 / len(sample))
    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) the hypothesis fails at p = 0.001.
    n = len(sample)
    ranks = torch.arange(n + 1) / n
    cdf = torch.special.ndtr(sample.sort().values)
    assert max((ranks[1:] - cdf).max(), (cdf - ranks[:-1]).max()) < 1.95 / math.sqrt(n)


def test_the_distribution_function_of_the_check_is_right():
    points = torch.linspace(-4, 4, 9, dtype=torch.float64)
    expected = [NormalDist().cdf(point) for point in points.tolist()]
    torch.testing.assert_close(torch.special.ndtr(points), torch.tensor(expected, dtype=torch.float64))


def test_neighbours_and_seeds_are_independent():
    first, second = standard_normal(1, 50_000, 4), standard_normal(2, 50_000, 4)
    limit = 4 / math.sqrt(first.numel())
    assert abs((first * second).mean()) < limit
    assert abs((first[1:] * first[:-1]).mean()) < limit
    assert abs((first[:, 1:] * first[:, :-1]).mean()) < 2 * limit


@pytest.mark.parametrize("tokens", [0, 1, 7, 64])
def test_a_number_depends_on_seed_and_counter_only(tokens):
    whole = standard_normal(9, 100, 3)
    assert torch.equal(standard_normal(9, tokens, 3), whole[:tokens])
    assert torch.equal(standard_normal(9, 50, 6).flatten(), whole.flatten())


def test_all_64_bits_of_the_seed_count():
    samples = [standard_normal(seed, 4, 4) for seed in (0, 1, 1 << 31, 1 << 32, 1 << 63, -1)]
    for i, a in enumerate(samples):
        for b in samples[:i]:
            assert not torch.equal(a, b)
    assert torch.equal(standard_normal(-1, 4, 4), standard_normal((1 << 64) - 1, 4, 4))
