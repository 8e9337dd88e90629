"""The two configuration files of a checkpoint, as `MoEForCausalLM` and transformers' Mixtral read them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MistralForCausalLM, MixtralForCausalLM

from model import MoEConfig, MoEForCausalLM


@pytest.fixture
def copied(mixtral, tmp_path):
    """Copies the Mixtral, with other settings in one of its files."""

    def copy(file, name="changed", **changes):
        folder = tmp_path / name
        shutil.copytree(mixtral, folder, dirs_exist_ok=True)
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        return folder

    return copy


def test_settings_of_sampling_that_are_off_do_not_keep_a_model_from_being_saved(copied, tmp_path):
    """As in the wild. A run of training would be lost at its first checkpoint."""
    folder = copied("generation_config.json", do_sample=False, temperature=0.9, top_p=0.6)
    try:
        MixtralForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "theirs")
    except ValueError:
        pytest.skip("this transformers does not save such a Mixtral either (5.17)")
    model = MoEForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "saved")
    model.export_mixtral(tmp_path / "exported")
    for name in ("saved", "exported"):
        assert json.loads((tmp_path / name / "generation_config.json").read_text())["temperature"] == 0.9
    model.generation_config.temperature = 0.5  # by the user, whose mistake it is
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(tmp_path / "again")


def test_settings_of_generation_in_the_models_config_are_read_where_they_have_no_file(copied, ids):
    folder = copied("config.json", repetition_penalty=1.5, max_length=40, no_repeat_ngram_size=2, eos_token_id=[2, 5])
    (folder / "generation_config.json").unlink()
    models = [cls.from_pretrained(folder) for cls in (MoEForCausalLM, MixtralForCausalLM)]
    ours, theirs = (model.generation_config.to_diff_dict() for model in models)
    assert ours == theirs and ours["repetition_penalty"] == 1.5
    assert torch.equal(*(model.generate(ids[:1]) for model in models))


def test_mixtrals_config_read_as_ours_has_no_noise(mixtral, ids):
    config = MoEConfig.from_pretrained(mixtral)
    assert config.router_type == "topk" and config.model_type == MoEConfig.model_type
    model = MoEForCausalLM.from_pretrained(mixtral, config=config).train()
    assert model(ids, labels=ids).loss == model(ids, labels=ids).loss
    assert MoEConfig.from_pretrained(mixtral, router_type="noisy_topk").router_type == "noisy_topk"


@torch.no_grad()
def test_a_head_of_its_own_is_used_whatever_the_config_says(copied, ours, ids, tmp_path):
    folder = copied("config.json", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="has tie_word_embeddings, but a lm_head.weight that differs from model.embed_tokens.weight"):
        model = MoEForCausalLM.from_pretrained(folder)
    assert torch.equal(model(ids).logits, ours(ids).logits)
    torch.testing.assert_close(model(ids).logits, MixtralForCausalLM.from_pretrained(folder)(ids).logits, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(MoEForCausalLM.from_pretrained(tmp_path / "saved")(ids).logits, ours(ids).logits)


@pytest.mark.filterwarnings("error::UserWarning")
def test_a_head_that_is_the_embeddings_is_tied(copied):
    folder = copied("config.json", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    model = MoEForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings and model.lm_head.weight is model.model.embed_tokens.weight


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:.*has tie_word_embeddings")
def test_a_composed_mixture_keeps_its_bases_own_head(base, run_compose, ids, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"tie_word_embeddings": True}))
    model = MoEForCausalLM.from_pretrained(run_compose([folder], base=folder, layout="dense", experts_per_token=1))
    expected = MistralForCausalLM.from_pretrained(base)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, atol=1e-5, rtol=0)
