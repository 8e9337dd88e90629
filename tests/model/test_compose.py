import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from model import MoEForCausalLM


def logits_of_adapter(base, adapter, ids):
    with torch.no_grad():
        return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(adapter)).eval()(ids).logits


@torch.no_grad()
@pytest.mark.parametrize("layout", ["lora", "dense"])
def test_mixture_of_one_adapter_is_that_adapter(base, adapters, run_compose, ids, layout):
    mixture = MoEForCausalLM.from_pretrained(run_compose([adapters[0]] * 2, layout=layout))
    expected = logits_of_adapter(base, adapters[0], ids)
    torch.testing.assert_close(mixture(ids).logits, expected, atol=1e-5, rtol=0)
    assert mixture.config.expert_layout == layout
