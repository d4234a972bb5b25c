"""Decoding in blocks of audios: as all at once, and never more unpacked than allowed."""

import pytest
import torch

from tests.conftest import random_features, random_whisper
from tests.conversion.tiny import random_statistics
from tests.modeling.test_generation import WAYS, assert_same, generate
from whisper_mla import LatentCache, WhisperMLAForConditionalGeneration, audio_blocks, encoder_and_decoder

FRAMES, WIDTH = 30, 32
ONE = FRAMES * WIDTH * 4  # bytes of the audio's latent in float32


@pytest.fixture(scope="module")
def models():
    """Rounded latents of every kind."""
    # Assistants of Transformers 5.15, those of stock Whisper too, draft beyond what is asked for.
    stock = random_whisper(max_target_positions=80)
    make = WhisperMLAForConditionalGeneration.from_whisper
    groups = {"latent_dtype": "mixed", "latent_group_size": 8, "cache_cut": 0.93, "force": True}
    mixed = make(stock, calibration=random_statistics(stock), **groups)
    assert len(set(mixed.config.cross_kv_bits)) > 1 and mixed.config.cross_latent_width == WIDTH
    rounded = {kind: make(stock, latent_dtype=kind) for kind in ("int4", "int8")}
    return {**rounded, "exact": make(stock), "mixed": mixed}


@pytest.fixture
def unpacked(monkeypatch):
    """Audios that were unpacked at a time, two at most being allowed."""
    counts, dequantize = [], encoder_and_decoder.dequantize
    monkeypatch.setattr(audio_blocks, "UNPACKED_BYTES", 2 * ONE)

    def counted(packed, *rest):
        counts.append(len(packed))
        return dequantize(packed, *rest)

    monkeypatch.setattr(encoder_and_decoder, "dequantize", counted)
    return counts


def at_once(monkeypatch, work):
    with monkeypatch.context() as patch:
        patch.setattr(audio_blocks, "UNPACKED_BYTES", 2**40)
        return work()


MOST = ("greedy", "beams, several returned", "static cache", "no cache")
REST = ("beams", "sampling, several returned", "static cache, beams", "scores")


@pytest.mark.parametrize(
    ("kind", "way"),
    [(kind, way) for kind in ("int4", "int8", "mixed") for way in (*MOST, *(REST if kind != "mixed" else ()))],
)
def test_the_same_as_all_at_once(models, unpacked, monkeypatch, kind, way):
    features = random_features(models[kind], 5)
    length = {"max_new_tokens": 8, "min_new_tokens": 8}

    def work():
        return generate(models[kind], input_features=features, **{**WAYS[way], **length})

    expected = at_once(monkeypatch, work)
    assert set(unpacked) == {5} and not unpacked.clear()
    assert_same(work(), expected)
    assert set(unpacked) == {1, 2} and sum(unpacked) % 5 == 0
    tokens = expected if isinstance(expected, torch.Tensor) else expected["sequences"]
    assert len(tokens.unique(dim=0)) > 1  # rows that change places would be seen


def test_chosen_at_run_time(models, unpacked, monkeypatch):
    features = random_features(models["exact"], 5)
    way = {"cache_implementation": "quantized", "cache_config": {"nbits": 8}, "max_new_tokens": 6}
    expected = at_once(monkeypatch, lambda: generate(models["exact"], input_features=features, **way))
    unpacked.clear()
    assert torch.equal(generate(models["exact"], input_features=features, **way), expected)
    assert set(unpacked) == {1, 2}


@pytest.mark.parametrize("eager", [True, False])
def test_everything_that_is_returned(models, unpacked, monkeypatch, eager, fresh):
    """States and attentions of every layer, for beams of one audio; and the cache, which grows and is cropped."""
    model = fresh(models["int4"])
    if eager:
        model.set_attn_implementation("eager")
    model.eval()
    tokens = torch.randint(3, 128, (10, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[3, :2] = 0

    def steps():
        cache, found = LatentCache(model.config), []
        with torch.no_grad():
            audio = model.compress_encoder_outputs(model.get_encoder()(random_features(model, 5)))
            for start, end in ((0, 3), (3, 4), (4, 7), (5, 7)):
                if (start, end) == (5, 7):
                    cache.crop(-2)
                found.append(
                    model(
                        encoder_outputs=audio,
                        decoder_input_ids=tokens[:, start:end],
                        decoder_attention_mask=mask[:, :end],
                        past_key_values=cache,
                        use_cache=True,
                        output_hidden_states=True,
                        output_attentions=eager,
                    )
                )
                assert found[-1].past_key_values is cache
        return found, [layer.keys for layer in cache.self_attention_cache.layers]

    (expected, expected_keys), (found, keys) = at_once(monkeypatch, steps), steps()
    assert min(unpacked) == 1
    for a, b in zip(keys, expected_keys, strict=True):
        assert a.shape == b.shape == (10, 1, 7, 20) and (a != b).float().mean() < 0.01
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.allclose(ours.logits, theirs.logits, atol=1e-3)
        names = ("decoder_hidden_states", *(("decoder_attentions", "cross_attentions") if eager else ()))
        for name in names:
            assert len(ours[name]) == len(theirs[name]) >= 2
            for a, b in zip(ours[name], theirs[name], strict=True):
                assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("kind", ["int4", "int8", "mixed"])
def test_drafts_that_are_checked_and_cut(models, unpacked, monkeypatch, kind):
    """What prompt lookup and assistants do to a decoder, of which Transformers has one audio at a time only."""
    model = models[kind]
    drafts = torch.randint(3, 128, (10, 12), generator=torch.Generator().manual_seed(0))

    def decode():
        cache, found = LatentCache(model.config), []
        with torch.no_grad():
            audio = model.compress_encoder_outputs(model.get_encoder()(random_features(model, 5)))
            for turn in range(3):
                tokens = drafts[:, 4 * turn : 4 * turn + 4]
                logits = model(
                    encoder_outputs=audio, decoder_input_ids=tokens, past_key_values=cache, use_cache=True
                ).logits
                found.append(logits)
                cache.crop(-(turn + 1))  # drafts that were wrong
                assert cache.get_seq_length() == sum(4 - i - 1 for i in range(turn + 1))
        return torch.stack(found)

    expected, found = at_once(monkeypatch, decode), decode()
    assert set(unpacked) == {5, 1, 2}
    assert torch.equal(found.argmax(-1), expected.argmax(-1)) and torch.allclose(found, expected, atol=1e-3)
    assert len(found.argmax(-1).unique()) > 10


@pytest.mark.parametrize("way", ["prompt lookup", "rounded assistant", "exact assistant"])
@pytest.mark.parametrize("kind", ["int8", "mixed"])
def test_one_audio_with_drafts(models, unpacked, monkeypatch, fresh, kind, way):
    model = models[kind]
    features = random_features(model, 1)
    plain = at_once(monkeypatch, lambda: generate(model, input_features=features, max_new_tokens=12))
    unpacked.clear()
    monkeypatch.setattr(audio_blocks, "UNPACKED_BYTES", 1)  # less than the one audio takes
    helper = models["exact"] if way == "exact assistant" else models["int8"]
    drafting = {"prompt_lookup_num_tokens": 3} if way == "prompt lookup" else {"assistant_model": fresh(helper)}
    found = generate(fresh(model), input_features=features, max_new_tokens=12, **drafting)
    assert torch.equal(found, plain) and set(unpacked) == {1}


def test_words_and_long_form(digits, speech, long_speech, unpacked, monkeypatch, fresh):
    model = fresh(WhisperMLAForConditionalGeneration.from_whisper(digits, latent_dtype="int8"))
    monkeypatch.setattr(audio_blocks, "UNPACKED_BYTES", 1)
    ways = [
        {**{name: rows[:2] for name, rows in speech.items()}, "return_token_timestamps": True, "max_new_tokens": 8},
        {**long_speech, "return_timestamps": True, "max_new_tokens": 8},
    ]
    for way in ways:
        expected = at_once(monkeypatch, lambda way=way: generate(fresh(model), **way))
        assert max(unpacked) > 1 and not unpacked.clear()
        assert_same(generate(fresh(model), **way), expected)
        assert set(unpacked) == {1} and not unpacked.clear()


def test_an_error_names_rows_that_do_not_fit(models, unpacked):
    model = models["int8"]
    with torch.no_grad(), pytest.raises(ValueError, match="4 decoder rows cannot share the latents of 5 audios"):
        audio = model.compress_encoder_outputs(model.get_encoder()(random_features(model, 5)))
        model(encoder_outputs=audio, decoder_input_ids=torch.ones(4, 1, dtype=torch.long))
