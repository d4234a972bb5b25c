"""Token for token the output of stock Whisper, in every way of decoding."""

import copy

import pytest
import torch
from transformers import CompileConfig, WhisperForCausalLM
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from tests.conftest import CONVERSIONS, random_features, random_whisper
from whisper_mla import WhisperMLAForCausalLM, WhisperMLAForConditionalGeneration

pytestmark = pytest.mark.usefixtures("encode_once")

PROMPT = torch.tensor([360, 32, 116, 119, 111])

WAYS = {
    "greedy": {},
    "beams": {"num_beams": 5},
    "beams, several returned": {"num_beams": 3, "num_return_sequences": 2},
    "sampling": {"do_sample": True, "temperature": 1.5},
    "sampling, several returned": {"do_sample": True, "temperature": 1.5, "num_return_sequences": 3},
    "static cache": {"cache_implementation": "static"},
    "static cache, beams": {"cache_implementation": "static", "num_beams": 3},
    "no cache": {"use_cache": False, "max_new_tokens": 12},
    "timestamps": {"return_timestamps": True},
    "prompt": {"prompt_ids": PROMPT, "max_new_tokens": 30},
    "fallback": {
        "return_timestamps": True,
        "temperature": (0.0, 0.6, 1.0),
        "logprob_threshold": -0.05,
        "compression_ratio_threshold": 1.3,
        "no_speech_threshold": 0.5,
    },
    "scores": {"num_beams": 2, "return_dict_in_generate": True, "output_scores": True},
    "encoder states": {
        "num_beams": 2,
        "num_return_sequences": 2,
        "return_dict_in_generate": True,
        "output_hidden_states": True,
    },
}


def generate(model, **arguments):
    torch.manual_seed(0)
    with torch.no_grad():
        return model.generate(**arguments)


def assert_same(ours, expected):
    """Equal tokens, and equal times and scores where there are any."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(ours, expected)
        return
    assert torch.equal(ours["sequences"], expected["sequences"])
    if "token_timestamps" in expected:
        assert torch.allclose(ours["token_timestamps"], expected["token_timestamps"])
    for a, b in zip(ours.get("scores") or (), expected.get("scores") or (), strict=True):
        assert torch.allclose(a, b, atol=1e-3)


# Each is part of another way, and is tried on the exact model alone.
PARTS = {"beams", "sampling", "static cache", "scores"}
PAIRS = [(conversion, way) for conversion in CONVERSIONS for way in WAYS if conversion == "exact" or way not in PARTS]


@pytest.mark.parametrize(("converted", "way"), PAIRS, indirect=["converted"])
def test_batches_of_mixed_lengths(converted, speech, way):
    model, stock = converted
    speech = {name: tensor[1:] for name, tensor in speech.items()}
    assert_same(generate(model, **speech, **WAYS[way]), generate(stock, **speech, **WAYS[way]))


@pytest.mark.parametrize(
    "way",
    [
        {},
        {"num_beams": 3},
        {"return_segments": True},
        {"do_sample": True, "temperature": 1.0, "num_return_sequences": 2},
        {"prompt_ids": PROMPT, "condition_on_prev_tokens": True, "prompt_condition_type": "all-segments"},
        {"prompt_ids": PROMPT, "prompt_condition_type": "first-segment"},
        {"cache_implementation": "static", "temperature": (0.0, 1.0), "logprob_threshold": -0.05},
    ],
    ids=str,
)
def test_long_form(digits, exact, long_speech, way):
    # A short text per window keeps the untrained prompts from filling all 448 positions.
    way = {"max_new_tokens": 60, "return_timestamps": True, **way}
    ours, expected = generate(exact, **long_speech, **way), generate(digits, **long_speech, **way)
    assert_same(ours, expected)
    if "return_segments" in way:
        for a, b in zip(ours["segments"], expected["segments"], strict=True):
            assert [(s["start"], s["end"]) for s in a] == [(s["start"], s["end"]) for s in b]


def test_long_form_without_asking_for_timestamps(digits, exact, long_speech, fresh):
    models = fresh(exact), fresh(digits)
    for model in models:
        model.generation_config.return_timestamps = None
    ours, expected = (generate(model, **long_speech) for model in models)
    assert torch.equal(ours, expected)


def test_long_form_of_a_low_rank_model(digits, long_speech):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=64, cross_kv_rank=96)
    way = {**long_speech, "return_timestamps": True}
    assert_same(generate(model, **way), generate(model.to_whisper(), **way))


def test_language_detection(converted, speech, fresh):
    models = [fresh(model) for model in converted]
    for model in models:
        model.generation_config.language = None  # whisper-digits is set to English
    a, b = (generate(model, **speech, return_segments=True) for model in models)
    assert torch.equal(a["sequences"], b["sequences"])
    for ours, stock in zip(a["segments"], b["segments"], strict=True):
        assert torch.equal(ours[0]["result"], stock[0]["result"])  # with the language token
    ours, stock = (model.detect_language(speech["input_features"]) for model in models)
    assert torch.equal(ours, stock)


def one(speech):
    return {name: tensor[:1] for name, tensor in speech.items()}


@pytest.mark.parametrize("unused", ["tokenizer", "assistant_model", "labels"])
def test_arguments_that_decoding_has_no_use_for(digits, exact, processor, speech, fresh, unused):
    """Transformers hands them down to forwards, which refuse what they do not know."""
    way = {
        "tokenizer": {"stop_strings": [" three"], "tokenizer": processor.tokenizer},
        "assistant_model": {"num_beams": 2, "assistant_model": fresh(digits)},
        "labels": {"labels": torch.zeros(1, 3, dtype=torch.long)},
    }[unused]
    assert torch.equal(generate(exact, **one(speech), **way), generate(digits, **one(speech), **way))


def test_prompt_lookup(converted, speech):
    model, stock = converted
    way = {**one(speech), "prompt_lookup_num_tokens": 3}
    assert torch.equal(generate(model, **way), generate(stock, **way))


@pytest.fixture(scope="module")
def decoder_assistants_work(digits, digits_folder, speech) -> bool:
    """Whether stock Whisper can be assisted by a stock decoder; Transformers 5.15 raises."""
    helper = WhisperForCausalLM.from_pretrained(digits_folder, dtype=torch.float32)
    try:
        generate(copy.deepcopy(digits), **one(speech), assistant_model=helper)
    except UnboundLocalError:
        return False
    return True


@pytest.mark.parametrize("assistant", ["stock", "converted", "stock decoder", "converted decoder"])
def test_assisted_decoding(
    converted, digits, digits_folder, exact, speech, fresh, assistant, tmp_path, decoder_assistants_work
):
    if "decoder" in assistant and not decoder_assistants_work:
        pytest.skip("this Transformers cannot assist stock Whisper with a decoder either")
    model, stock = converted
    if assistant == "stock":
        helper = fresh(digits)
    elif assistant == "converted":
        helper = fresh(exact)
    elif assistant == "stock decoder":
        helper = WhisperForCausalLM.from_pretrained(digits_folder, dtype=torch.float32)
    else:
        exact.save_pretrained(tmp_path)
        helper = WhisperMLAForCausalLM.from_pretrained(tmp_path)
    ours = generate(fresh(model), **one(speech), assistant_model=helper)
    assert torch.equal(ours, generate(stock, **one(speech)))


def test_low_rank_assistant_of_a_stock_model(digits, speech, fresh):
    helper = WhisperMLAForConditionalGeneration.from_whisper(digits, kv_rank=48, cross_kv_rank=64)
    ours = generate(fresh(digits), **one(speech), assistant_model=helper)
    assert torch.equal(ours, generate(digits, **one(speech)))


@pytest.mark.parametrize("cross_kv_rank", [None, 96])
def test_encoder_outputs_given_by_the_caller(digits, speech, cross_kv_rank):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, cross_kv_rank=cross_kv_rank)
    with torch.no_grad():
        states = model.get_encoder()(speech["input_features"])
        kept = states.last_hidden_state.clone()
        compressed = model.compress_encoder_outputs(states)
    expected = generate(model, **speech, num_beams=2)
    for given in (states, compressed):
        assert torch.equal(generate(model, encoder_outputs=given, num_beams=2), expected)
    assert torch.equal(states.last_hidden_state, kept)


def test_assistant_without_encoder_needs_audio(digits, digits_folder, speech):
    model = WhisperMLAForConditionalGeneration.from_whisper(digits, cross_kv_rank=96)
    helper = WhisperForCausalLM.from_pretrained(digits_folder, dtype=torch.float32)
    with torch.no_grad():
        states = model.get_encoder()(one(speech)["input_features"])
    with pytest.raises(ValueError, match="pass input_features"):
        generate(model, encoder_outputs=states, assistant_model=helper)


def test_stock_cache_given_by_the_caller(converted, speech):
    model, stock = converted
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    assert torch.equal(generate(model, **speech, past_key_values=cache), generate(stock, **speech))
    assert cache.get_seq_length() > 10


def test_returned_cache_holds_latents(exact, digits, speech):
    """`generate` splits the returned cache per sequence and stacks it again, with stock code."""
    ours = generate(exact, **speech, return_dict_in_generate=True, return_timestamps=False)
    stock = generate(digits, **speech, return_dict_in_generate=True, return_timestamps=False)
    assert torch.equal(ours.sequences, stock.sequences)
    a, b = ours.past_key_values.self_attention_cache, stock.past_key_values.self_attention_cache
    assert a.layers[0].keys.shape == (4, 1, b.layers[0].keys.shape[2], 256)
    assert a.layers[0].values.numel() == 0


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"decoder_layers": 3, "encoder_layers": 1},
        {"d_model": 48, "encoder_attention_heads": 6, "decoder_attention_heads": 3},
        {"scale_embedding": True, "activation_function": "relu"},
        {"max_source_positions": 7, "d_model": 8, "decoder_attention_heads": 1, "encoder_attention_heads": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_random_weights_of_several_shapes(shape, seed):
    stock = random_whisper(seed, **shape)
    model = WhisperMLAForConditionalGeneration.from_whisper(stock)
    features = random_features(stock, batch=3)
    tokens = torch.randint(4, 128, (3, 11), generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        expected = stock(features, decoder_input_ids=tokens).logits
        assert (model(features, decoder_input_ids=tokens).logits - expected).abs().max() < 1e-4
    for way in ({}, {"num_beams": 3}, {"do_sample": True}):
        ours = generate(model, input_features=features, max_new_tokens=20, **way)
        stocks = generate(stock, input_features=features, max_new_tokens=20, **way)
        assert torch.equal(ours, stocks)
        assert len(stocks.unique()) > 1


def test_static_decoding_compiles_to_one_graph(exact, speech, fresh):
    torch._dynamo.reset()
    expected = generate(exact, **speech, max_new_tokens=8)
    compiled = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiled._compile_all_devices = True  # Transformers compiles on accelerators only, unless told
    way = {**speech, "max_new_tokens": 8, "cache_implementation": "static", "compile_config": compiled}
    counters = torch._dynamo.utils.counters
    counters.clear()
    model = fresh(exact)
    assert torch.equal(generate(model, **way), expected)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_compiled_decoding_stays_one_graph_when_a_file_ends(exact, processor, clips, fresh):
    """As in stock Whisper, the batch keeps its size when fewer files are left."""
    samples = clips["long"]["samples"]
    features = processor.feature_extractor(
        [samples[:170_000], samples[:330_000]],
        sampling_rate=16_000,
        return_tensors="pt",
        return_attention_mask=True,
        truncation=False,
        padding="longest",
    )
    compiled = CompileConfig(fullgraph=True, backend="aot_eager", mode=None)
    compiled._compile_all_devices = True
    counters = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    left: list[int] = []
    generate(
        fresh(exact),
        **features,
        return_timestamps=True,
        cache_implementation="static",
        compile_config=compiled,
        monitor_progress=lambda frames: left.append(int((frames[:, 0] < frames[:, 1]).sum())),
    )
    assert left[0] == 2 and left[-1] == 1
    assert counters["stats"]["unique_graphs"] == 1


def test_exact_model_is_not_the_stock_one_in_disguise(exact, digits):
    """The suite compares two different computations."""
    attention = exact.model.decoder.layers[0].self_attn
    assert type(attention) is not type(digits.model.decoder.layers[0].self_attn)
    assert attention.uses_absorbed_form(1)
    assert copy.deepcopy(exact).config.model_type == "whisper_mla"
