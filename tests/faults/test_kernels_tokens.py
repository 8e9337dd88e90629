"""Which tokens there are and where they go: rows 1 to 6, each through the public functions, on every implementation.

T tokens, K experts per token, E experts, D model width, F expert hidden width, R LoRA rank.
"""

from dataclasses import replace

import pytest
import torch

from moe_kernels.experts import moe_dense
from moe_kernels.grouping import group_tokens
from moe_kernels.routing import KINDS, Routing, importance_loss, load_loss, route, z_loss
from tests.faults.backends import DECODED, DENSE, SHARED, assert_all_near, every_implementation, every_layer, oracle, poisoned, run, running
from tests.moe_kernels.layers import BF16, Batch, assert_near, results

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of Triton's interpreter, on NaN and infinity


def with_choice(batch: Batch, choice: list[int]) -> Batch:
    """Every token goes to the experts `choice`."""
    return replace(batch, experts=torch.tensor(choice).expand(len(batch.x), -1), weights=batch.weights[:, : len(choice)])


@every_layer
def test_01_no_tokens(layer, name):
    y, dx, dweights, *grads = run(layer, Batch.of(layer, 0), name)
    assert (y.shape, y.dtype, dx.shape, dweights.shape) == ((0, layer.width), layer.dtype, (0, layer.width), (0, layer.top_k))
    assert grads and not any(grad.any() for grad in grads)
    with running(name):
        for kind in KINDS:
            routing = route(
                torch.zeros(0, 8),
                torch.ones(4, 8),
                torch.ones(4, 8),
                kind=kind,
                top_k=2,
                noise_seed=1,
                sequence_ids_T=torch.zeros(0, dtype=torch.int64),
            )
            losses = [importance_loss(routing.importance_E), load_loss(routing.load_E), z_loss(routing.logits_TE)]
            assert torch.stack(losses).isfinite().all()


@every_implementation
def test_02_no_values_in_a_row(name):
    """An expert without hidden units, or a model without width, is a mistake of a configuration: refused, by all alike."""
    routing = Routing(torch.ones(3, 1), torch.zeros(3, 1, dtype=torch.int64))
    for width, hidden in ((8, 0), (0, 8)):
        with running(name), pytest.raises(ValueError, match=r"do not fit: .* above 0"):
            moe_dense(torch.ones(3, width), routing, torch.ones(2, 2 * hidden, width), torch.ones(2, width, hidden))


@every_layer
def test_03_experts_without_tokens_in_memory_that_nobody_wrote(layer, name):
    batch = with_choice(Batch.of(layer, 18), [0, 2])
    with running(name), poisoned(layer):
        mine = results(layer, batch, layer.dtype, grads=True)
    assert_all_near(layer, mine, oracle(layer, batch))
    for grad in mine[3:]:
        assert grad[[0, 2]].any() and not grad[[1, 3]].any()


@every_implementation
@pytest.mark.parametrize(("experts", "top_k", "tokens"), [(4, 1, 20), (4, 4, 9), (1, 1, 5), (4, 2, 1)], ids=str)
@pytest.mark.parametrize("layout", ["dense", "lora"])
def test_04_all_tokens_to_one_expert_every_expert_and_one_token(layout, experts, top_k, tokens, name):
    layer = replace(DENSE if layout == "dense" else SHARED, experts=experts, top_k=top_k)
    batch = Batch.of(layer, tokens, "one")
    assert_all_near(layer, run(layer, batch, name), oracle(layer, batch))


@every_implementation
@pytest.mark.parametrize("layer", [DENSE, SHARED], ids=str)
def test_05_an_expert_twice_for_one_token_counts_twice(layer, name):
    batch = with_choice(Batch.of(layer, 6), [2, 2])
    assert_all_near(layer, run(layer, batch, name), oracle(layer, batch))


@every_implementation
@pytest.mark.parametrize("tokens", [1, 3])
def test_05_twice_where_few_tokens_are_decoded(tokens, name):
    batch = with_choice(Batch.of(DECODED, tokens), [2, 2])
    true = oracle(DECODED, batch)[0]
    with running(name), poisoned(DECODED):
        assert_near("y", results(DECODED, batch, BF16, grads=False)[0], true, DECODED.tolerance)


@every_implementation
@pytest.mark.parametrize("layer", [DENSE, SHARED, DECODED], ids=str)
@pytest.mark.parametrize("stray", [-1, 4, 1 << 40])
def test_06_an_id_that_is_no_expert_is_refused(layer, stray, name):
    batch = Batch.of(layer, 3)
    batch.experts[1, 1] = stray
    with running(name):
        for grads in (False, True):
            with pytest.raises(ValueError, match=rf"expert {stray}, which lies outside 0\.\.3"):
                results(layer, batch, layer.dtype, grads=grads)
        with pytest.raises(ValueError, match=rf"expert {stray}, which lies outside 0\.\.3"):
            group_tokens(batch.experts, 4)
        with pytest.raises(ValueError, match="integers"):
            results(layer, replace(batch, experts=batch.experts.float()), layer.dtype, grads=False)
