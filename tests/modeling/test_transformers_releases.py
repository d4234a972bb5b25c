"""Nothing that a release of Transformers renames or adds is ignored without a word."""

import copy
import importlib.metadata
import inspect

import pytest
import torch
import transformers
from transformers.models.whisper.modeling_whisper import WhisperDecoderLayer

from tests.conftest import random_features, random_whisper
from whisper_mla import LatentCache, WhisperMLAForCausalLM, WhisperMLAForConditionalGeneration, self_check
from whisper_mla.transformers_releases import (
    CACHE,
    NEWEST_TESTED,
    OLDEST_TESTED,
    WORKING_RELEASES,
    installed_release,
    with_cache_name,
)


@pytest.fixture(scope="module")
def stock():
    return random_whisper()


@pytest.fixture(scope="module")
def model(stock):
    return WhisperMLAForConditionalGeneration.from_whisper(stock)


@pytest.fixture
def untested(monkeypatch):
    """The installed Transformers, called by a version that nobody has tested; the check has not run yet."""
    monkeypatch.setattr(transformers, "__version__", "5.99.0")
    monkeypatch.setattr(self_check, "_state", "not checked")


def calls(model):
    """A valid call of every forward of the package."""
    features, tokens = random_features(model), torch.tensor([[3, 5], [3, 7]])
    decoder = model.model.decoder
    audio = model.get_encoder()(features).last_hidden_state
    alone = WhisperMLAForCausalLM(copy.deepcopy(model.config))
    hidden = torch.randn(2, 2, model.config.d_model)
    return {
        "conditional generation": (model, {"input_features": features, "decoder_input_ids": tokens}),
        "model": (model.model, {"input_features": features, "decoder_input_ids": tokens}),
        "encoder": (model.get_encoder(), {"input_features": features}),
        "decoder": (decoder, {"input_ids": tokens, "encoder_hidden_states": audio}),
        "decoder layer": (decoder.layers[0], {"hidden_states": hidden, "encoder_hidden_states": audio}),
        "self-attention": (decoder.layers[0].self_attn, {"hidden_states": hidden}),
        "cross-attention": (decoder.layers[0].encoder_attn, {"hidden_states": hidden, "key_value_states": audio}),
        "decoder alone": (alone.eval(), {"input_ids": tokens, "encoder_outputs": (audio,)}),
    }


CALLS = [
    "conditional generation",
    "model",
    "encoder",
    "decoder",
    "decoder layer",
    "self-attention",
    "cross-attention",
    "decoder alone",
]


@pytest.mark.parametrize("name", CALLS)
def test_every_forward_refuses_an_unknown_keyword(model, name):
    module, arguments = calls(model)[name]
    module(**arguments)
    with pytest.raises(TypeError, match=rf"'kv_store'.*Transformers {transformers.__version__}"):
        module(**arguments, kv_store=None)


def test_all_forwards_are_called_above(model):
    ours = {type(module) for module in model.modules() if type(module).__module__.startswith("whisper_mla")}
    assert ours - {type(module) for module, _ in calls(model).values()} == {
        type(model.get_encoder().layers[0])  # stock's, which gets what the encoder lets through
    }


@pytest.mark.parametrize("name", ["conditional generation", "model", "decoder", "decoder alone"])
def test_the_cache_has_two_names(model, name):
    module, arguments = calls(model)[name]
    for cache in ("cache", "past_key_values"):
        latents = LatentCache(model.config)
        module(**arguments, **{cache: latents})
        assert latents.get_seq_length() == 2
    with pytest.raises(TypeError, match="cache and past_key_values are two names"):
        module(**arguments, cache=latents, past_key_values=latents)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_generate_fills_the_cache_of_either_name(model, name):
    features = random_features(model)
    expected = model.generate(features, max_new_tokens=8)
    latents = LatentCache(model.config)
    assert torch.equal(model.generate(features, max_new_tokens=8, **{name: latents}), expected)
    assert latents.get_seq_length() > 4


def test_forwards_are_called_with_the_name_of_the_installed_release():
    assert CACHE in inspect.signature(WhisperDecoderLayer.forward).parameters
    assert with_cache_name({"cache": 1, "x": 2}, CACHE) == {CACHE: 1, "x": 2}


def test_bounds_are_those_of_the_distribution():
    required = next(line for line in importlib.metadata.requires("whisper-mla") if line.startswith("transformers"))
    assert sorted(required.removeprefix("transformers").split(",")) == sorted(
        WORKING_RELEASES.removeprefix("transformers").split(",")
    )
    major, minor = NEWEST_TESTED
    assert f">={OLDEST_TESTED[0]}.{OLDEST_TESTED[1]},<{major}.{minor + 1}" in WORKING_RELEASES
    assert OLDEST_TESTED <= installed_release() <= NEWEST_TESTED


def test_an_untested_release_that_works_is_warned_of_once(model, untested, monkeypatch):
    warnings = []
    monkeypatch.setattr(self_check.logger, "warning", warnings.append)
    features = random_features(model)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for _ in range(2):
        model.generate(features, max_new_tokens=2)
    assert torch.equal(torch.rand(3), expected)  # the check draws no random numbers of the user's
    assert len(warnings) == 1
    assert "5.99.0" in warnings[0]
    assert WORKING_RELEASES in warnings[0]


def renamed(forward):
    """A decoder layer of a release in which the cache has a third name."""

    def layer(self, hidden_states, *args, **kwargs):
        attention = self.self_attn.forward
        self.self_attn.forward = lambda *a, **k: attention(*a, kv_store=k.pop(CACHE), **k)
        try:
            return forward(self, hidden_states, *args, **kwargs)
        finally:
            del self.self_attn.forward

    return layer


def cacheless(forward):
    """A decoder layer of a release that keeps the cache somewhere else: nothing unknown arrives, nothing is cached."""

    def layer(self, *args, **kwargs):
        kwargs[CACHE] = None
        return forward(self, *args, **kwargs)

    return layer


@pytest.mark.parametrize("change, reason", [(renamed, "kv_store"), (cacheless, "other tokens")])
def test_a_release_that_breaks_decoding_is_refused(model, untested, monkeypatch, change, reason):
    from whisper_mla.encoder_and_decoder import WhisperMLADecoderLayer

    monkeypatch.setattr(WhisperMLADecoderLayer, "forward", change(WhisperMLADecoderLayer.forward))
    for _ in range(2):  # every time, not only the first
        with pytest.raises(RuntimeError, match=rf"5\.99\.0.*{reason}.*pip install '{WORKING_RELEASES}'"):
            model.generate(random_features(model), max_new_tokens=2)


def test_a_tested_release_is_not_checked(model, monkeypatch):
    monkeypatch.setattr(self_check, "_state", "not checked")
    monkeypatch.setattr(self_check, "_find_fault", lambda: pytest.fail("checked"))
    model.generate(random_features(model), max_new_tokens=2)
