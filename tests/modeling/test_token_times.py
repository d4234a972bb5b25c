"""Times of tokens from the weights of the alignment heads alone: stock Whisper's times, and what is not kept."""

import pytest
import torch

from tests.modeling.test_generation import assert_same, generate, one
from whisper_mla import WhisperMLAForConditionalGeneration, latent_attention
from whisper_mla.token_times import AlignmentHeads

pytestmark = pytest.mark.usefixtures("encode_once")

TIMES = {"return_timestamps": True, "return_token_timestamps": True, "max_new_tokens": 16}
PROMPT = torch.tensor([360, 32, 116, 119, 111])


@pytest.fixture
def seen(monkeypatch):
    """What `generate` has kept when times are taken from it."""
    found = []
    original = WhisperMLAForConditionalGeneration._extract_token_timestamps

    def extract(self, outputs, *args, **kwargs):
        found.append({name: outputs.get(name) for name in outputs})
        return original(self, outputs, *args, **kwargs)

    monkeypatch.setattr(WhisperMLAForConditionalGeneration, "_extract_token_timestamps", extract)
    return found


@pytest.mark.parametrize(
    "way",
    [
        # Several sequences beside a mask are refused by Transformers itself.
        {"num_beams": 2, "num_return_sequences": 2, "attention_mask": None},
        {"do_sample": True, "temperature": 1.0, "num_return_sequences": 2, "attention_mask": None},
        {"num_beams": 3, "max_new_tokens": 40},
        {"prompt_ids": PROMPT, "max_new_tokens": 20, "num_beams": 2},
        {"temperature": (0.0, 0.6), "logprob_threshold": -0.05, "compression_ratio_threshold": 1.3},
        {"cache_implementation": "static"},
        {"return_timestamps": False, "return_dict_in_generate": True},
    ],
    ids=str,
)
def test_stock_whispers_times(digits, exact, speech, fresh, way):
    some = {name: tensor[1:3] for name, tensor in speech.items()}
    ours, expected = (generate(model, **{**some, **TIMES, **way}) for model in (exact, fresh(digits)))
    assert_same(ours, expected)
    assert ours["token_timestamps"].max() > 1


def test_stock_whispers_times_in_long_form(digits, exact, long_speech, fresh):
    some = {name: tensor[:1] for name, tensor in long_speech.items()}
    way = {**some, **TIMES, "max_new_tokens": 60, "return_segments": True}
    ours, expected = generate(exact, **way), generate(fresh(digits), **way)
    assert_same(ours, expected)
    assert ours["token_timestamps"].max() > 5
    for ours_of, expected_of in zip(ours["segments"], expected["segments"], strict=True):
        for a, b in zip(ours_of, expected_of, strict=True):
            assert torch.allclose(a["token_timestamps"], b["token_timestamps"])
            assert not a["result"]["cross_attentions"] and not a["result"]["decoder_attentions"]


def test_with_an_assistant(digits, exact, speech, fresh):
    way = {**one(speech), **TIMES, "prompt_lookup_num_tokens": 3}
    assert_same(generate(exact, **way), generate(fresh(digits), **way))


@pytest.mark.parametrize("beams", [1, 3])
def test_only_the_rows_of_the_alignment_heads_are_kept(exact, speech, seen, beams):
    generate(exact, **speech, **TIMES, num_beams=beams)
    heads, frames = exact.generation_config.alignment_heads, exact.config.max_source_positions
    per_layer = [sum(layer == number for layer, _ in heads) for number in sorted({layer for layer, _ in heads})]
    (kept,) = seen
    for step in kept["cross_attentions"][1:]:
        assert [tuple(weights.shape) for weights in step] == [(4 * beams, count, 1, frames) for count in per_layer]
        assert all(weights.dtype == torch.float32 for weights in step)
    assert all(len(step) == 0 for step in kept["decoder_attentions"]) and not kept.get("encoder_attentions")
    assert kept.get("scores") is None


def test_attention_stays_what_it_was(exact, speech):
    before = exact.config._attn_implementation
    generate(exact, **one(speech), **TIMES)
    assert exact.config._attn_implementation == before != "eager"


def test_who_asks_for_attentions_gets_all_of_them(digits, exact, speech, fresh):
    way = {**one(speech), "return_token_timestamps": True, "return_dict_in_generate": True, "output_attentions": True}
    ours, expected = generate(fresh(exact), **way), generate(fresh(digits), **way)
    assert_same(ours, expected)
    for a, b in zip(ours["cross_attentions"], expected["cross_attentions"], strict=True):
        assert [tuple(weights.shape) for weights in a] == [tuple(weights.shape) for weights in b]


def test_of_latents_of_all_kinds(converted, speech, fresh):
    model, stock = converted
    assert_same(generate(fresh(model), **one(speech), **TIMES), generate(fresh(stock), **one(speech), **TIMES))


@pytest.mark.parametrize("way", ["eager", "hooks"])
def test_of_other_attention(exact, speech, fresh, way):
    model = fresh(exact)
    if way == "eager":
        model.set_attn_implementation("eager")
    else:  # the weights of the projection cannot be read directly
        for layer in model.model.decoder.layers:
            layer.encoder_attn.k_proj.register_forward_hook(lambda module, args, output: None)
    assert_same(generate(model, **one(speech), **TIMES), generate(exact, **one(speech), **TIMES))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_times_in_half_precision_are_finite_and_close(exact, speech, fresh, dtype):
    """Half precision rounds small weights to 0 for all tokens, where stock Whisper divides 0 by 0."""
    model = fresh(exact).to(dtype)
    expected = generate(exact, **one(speech), **TIMES)
    found = generate(model, **one(speech), **TIMES)
    assert torch.equal(found["sequences"], expected["sequences"])
    assert torch.isfinite(found["token_timestamps"]).all() and (found["token_timestamps"] >= 0).all()
    assert (found["token_timestamps"] - expected["token_timestamps"]).abs().max() <= 0.0201  # one frame


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("hooks", [False, True])
def test_scores_of_half_precision_are_not_rounded(exact, fresh, dtype, hooks, monkeypatch):
    attention = fresh(exact).to(dtype).model.decoder.layers[1].encoder_attn
    if hooks:
        attention.k_proj.register_forward_hook(lambda module, args, output: None)
    generator = torch.Generator().manual_seed(0)
    query, latent = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 4, 2, 64), (5, 30, 256)))
    key = latent.double() @ attention.k_proj.weight.double().T if not hooks else attention.k_proj(latent).double()
    key = key.unflatten(-1, (-1, 64)).transpose(1, 2)[:, [3, 1]]
    scores = query[:, [3, 1]].double() @ key.transpose(2, 3)
    assert scores.std() > 1
    weights = [attention._weights(query, latent, [3, 1])]
    monkeypatch.setattr(latent_attention, "_FLOAT32_BYTES", 2 * 30 * 256 * 4)  # of two audios of the five
    weights.append(attention._weights(query, latent, [3, 1]))
    for found in weights:
        assert found.dtype == torch.float32 and found.shape == (5, 2, 2, 30)
        assert torch.allclose(found.log(), scores.softmax(-1).log().float(), atol=1e-4, rtol=0)


def test_rows_of_a_sequence():
    heads = AlignmentHeads([(3, 1), (1, 0), (3, 0)])
    assert heads.of_layer(3) == [1, 0] and heads.of_layer(2) == []
    first = [torch.arange(8.0).view(2, 1, 2, 2), 100 + torch.arange(16.0).view(2, 2, 2, 2)]  # layers 1 and 3
    second = [torch.full((2, 1, 1, 2), 50.0), torch.full((2, 2, 1, 2), 60.0)]
    rows = heads.rows([first, second], [1, 0])
    assert rows.tolist() == [
        [[108, 109], [110, 111], [60, 60]],
        [[4, 5], [6, 7], [50, 50]],
        [[112, 113], [114, 115], [60, 60]],
    ]
