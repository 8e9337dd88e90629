"""A slice of the 100,000 mutations of `python -m tests.faults.mutations`, other ones than its first."""

from random import Random

import pytest
from transformers import AutoConfig

from tests.faults.mutate import mutated
from tests.faults.mutations import Hang, confined, mutate_all
from tests.faults.readers import make_readers

COUNT = 3000


def test_a_slice_of_the_mutations(tmp_path):
    readers = make_readers(tmp_path)
    with confined():
        tallies = mutate_all(readers, seed=1, numbers=range(COUNT))
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    assert not failures, "\n".join(failures)
    assert all(tally.accepted + tally.rejected for tally in tallies.values())
    assert sum(tally.rejected for tally in tallies.values()) > COUNT / 2, "the mutations hardly damage anything"


def test_a_connection_is_found():
    """With the hub offline, as in all tests, a name that is looked up there was an error before any connection."""
    with confined(), pytest.raises(Hang, match="a connection was tried"):
        AutoConfig.from_pretrained("nobody/nothing")


def test_a_mutation_is_its_seed_and_number():
    data, others = b'{"a": [1, 2, {"b": null}], "c": "d"}\n', [b"other"]
    made = [[mutated(data, "x.json", Random(f"{seed}/{n}"), others) for n in range(50)] for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2] and len(set(made[0])) > 40
