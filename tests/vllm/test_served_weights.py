"""A checkpoint's tensors as the model in vLLM holds them: attention with them is ours. vLLM is not needed."""

import pytest
import torch

from tests.conftest import random_whisper
from whisper_mla import WhisperMLAConfig, WhisperMLAForConditionalGeneration
from whisper_mla.absorbed_attention import absorb_query, attend, expand_output
from whisper_mla.vllm_plugin.served_weights import served_weights

RANKS = {
    "exact": {},
    "key_value": {"cross_cache": "key_value", "kv_rank": 8},
    "shared": {"kv_rank": 8, "cross_kv_rank": 12},
    "per_layer": {"kv_rank": [8, 32], "cross_kv_rank": [6, 32], "cross_kv_shared": False},
    "everywhere": {"kv_rank": 8, "cross_kv_rank": 12, "audio_kv_rank": [16, 20]},
}


@pytest.fixture(params=RANKS, scope="module")
def model(request) -> WhisperMLAForConditionalGeneration:
    """Random weights and value biases, float64."""
    config = WhisperMLAConfig.from_whisper_config(random_whisper().config, **RANKS[request.param])
    torch.manual_seed(0)
    made = WhisperMLAForConditionalGeneration(config).double().eval()
    for parameter in made.parameters():
        parameter.data.normal_(0, parameter.shape[-1] ** -0.5)
    return made


def served_attention(tensors: dict, prefix: str, hidden, latent, heads: int):
    """What the module in vLLM computes, of one sequence."""
    get = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    query = hidden @ get["query_proj.weight"].T + get["query_proj.bias"]
    head_dim = query.shape[-1] // heads
    absorbed = absorb_query((query * head_dim**-0.5).unflatten(-1, (heads, -1)).transpose(1, 2), get["key_up"])
    attended, _ = attend(absorbed, latent, None, False, return_weights=False)
    output = expand_output(attended, get["value_up"], None)
    return output @ get["out_proj.weight"].T + get["out_proj.bias"]


@torch.no_grad()
def test_cross_attention_with_served_weights_is_the_models(model):
    config, decoder = model.config, model.model.decoder
    tensors = dict(served_weights(model.state_dict().items()))
    encoded, hidden = torch.randn(1, 30, 32, dtype=torch.double), torch.randn(1, 3, 32, dtype=torch.double)
    for layer, module in enumerate(decoder.layers):
        prefix = f"model.decoder.layers.{layer}.encoder_attn."
        shared = config.cross_kv_shared
        down = tensors.get(f"model.decoder.layers.{0 if shared else layer}.encoder_attn.kv_down_proj.weight")
        latent = encoded if down is None else encoded @ down.T
        served = served_attention(tensors, prefix, hidden, latent, config.decoder_attention_heads)
        if config.cross_cache == "latent":
            expected, _ = module.encoder_attn(hidden, key_value_states=decoder.cross_latent(encoded))
        else:
            expected, _ = module.encoder_attn(hidden, key_value_states=encoded)
        torch.testing.assert_close(served, expected)


@torch.no_grad()
def test_self_attention_with_served_weights_is_the_models(model):
    tensors = dict(served_weights(model.state_dict().items()))
    hidden = torch.randn(1, 1, 32, dtype=torch.double)  # one position: nothing to mask
    for layer, module in enumerate(model.model.decoder.layers):
        prefix = f"model.decoder.layers.{layer}.self_attn."
        down = tensors.get(f"{prefix}kv_down_proj.weight")
        latent = hidden if down is None else hidden @ down.T
        served = served_attention(tensors, prefix, hidden, latent, model.config.decoder_attention_heads)
        torch.testing.assert_close(served, module.self_attn(hidden)[0])


@torch.no_grad()
def test_a_low_rank_encoder_is_served_at_full_rank(model):
    tensors = dict(served_weights(model.state_dict().items()))
    stock = model.to_whisper().state_dict()
    for name, tensor in stock.items():
        if name.startswith("model.encoder."):
            torch.testing.assert_close(tensors[name], tensor)
    assert {name for name in tensors if name.startswith("model.encoder.")} == {
        name for name in stock if name.startswith("model.encoder.")
    }


def test_no_value_bias_and_no_tensor_is_left(model):
    tensors = dict(served_weights(model.state_dict().items()))
    assert not [name for name in tensors if ".decoder." in name and ("v_proj" in name or "k_proj" in name)]
    assert "model.decoder.cross_kv_down_proj.weight" not in tensors
    assert all(tensor.dtype == torch.double for tensor in tensors.values())
