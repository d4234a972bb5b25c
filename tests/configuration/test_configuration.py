import copy
import json

import pytest
from transformers import WhisperConfig

from whisper_mla import WhisperMLAConfig
from whisper_mla.configuration import cache_size


def test_defaults_are_exact():
    config = WhisperMLAConfig(d_model=64, decoder_layers=3, encoder_layers=2)
    assert config.kv_ranks == [64] * 3
    assert config.cross_kv_ranks == [64] * 3
    assert config.audio_kv_ranks == [64] * 2
    assert config.cross_latent_is_encoder_output
    assert config.cross_latent_width == 64


def test_per_layer_ranks():
    config = WhisperMLAConfig(decoder_layers=3, kv_rank=[8, 16, 24], cross_kv_rank=[4, 5, 6], cross_kv_shared=False)
    assert config.kv_ranks == [8, 16, 24]
    assert config.cross_latent_width == 15
    assert not config.cross_latent_is_encoder_output


def test_full_rank_of_cross_attention_is_the_encoder_output():
    assert WhisperMLAConfig(d_model=64, cross_kv_rank=64).cross_latent_is_encoder_output
    assert WhisperMLAConfig(d_model=64, cross_kv_rank=64, cross_kv_shared=False).cross_latent_width == 64


# Four layers, of two groups each.
MIXED = {"latent_dtype": "mixed", "kv_rank": 64, "kv_bits": [[6, 2]] * 4, "cross_kv_rank": 64, "cross_kv_bits": [4, 3]}


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"kv_rank": 0}, ["kv_rank=0", "1 to d_model (384)"]),
        ({"kv_rank": 385}, ["kv_rank=385", "1 to d_model (384)"]),
        ({"kv_rank": "64"}, ["kv_rank='64'", "integer"]),
        ({"kv_rank": True}, ["kv_rank=True", "integer"]),
        ({"kv_rank": 1.5}, ["kv_rank=1.5", "integer"]),
        ({"kv_rank": [64, 64, 64, None]}, ["kv_rank=[64, 64, 64, None]", "integer"]),
        ({"kv_rank": [64, 64]}, ["kv_rank=[64, 64]", "4 decoder layers"]),
        ({"audio_kv_rank": [64] * 5}, ["audio_kv_rank", "4 encoder layers"]),
        ({"cross_kv_rank": -1}, ["cross_kv_rank=-1", "1 to d_model"]),
        ({"cross_kv_rank": [64] * 4}, ["cross_kv_rank", "cross_kv_shared=False"]),
        ({"cross_kv_shared": 1}, ["cross_kv_shared=1", "True or False"]),
        ({"cross_cache": "both"}, ["cross_cache='both'", "'latent'", "'key_value'"]),
        ({"cross_cache": "key_value", "cross_kv_rank": 64}, ["cross_kv_rank=64", "cross_cache='latent'"]),
        ({"latent_dtype": "int3"}, ["latent_dtype='int3'", "'int8'", "'int4'"]),
        ({"latent_dtype": ["int4"]}, ["latent_dtype=['int4']", "of the text and of the audio"]),
        ({"latent_dtype": 4}, ["latent_dtype=4", "'int4'"]),
        ({"latent_dtype": "int4", "latent_group_size": 24}, ["latent_group_size=24", "power of two"]),
        ({"latent_dtype": "int4", "latent_group_size": 256}, ["latent_group_size=256", "d_model=384"]),
        ({"latent_dtype": "int4", "kv_rank": [64, 64, 48, 64]}, ["latent_group_size=32", "kv_rank=[64, 64, 48, 64]"]),
        ({"latent_dtype": [None, "int8"], "cross_kv_rank": 100}, ["latent_group_size=32", "cross_kv_rank=100"]),
        ({"latent_dtype": "mixed"}, ["needs kv_bits and cross_kv_bits", "which a conversion finds"]),
        ({"latent_dtype": "int4", "cross_kv_bits": [4]}, ["belong to latent_dtype='mixed', not 'int4'"]),
        (MIXED | {"kv_bits": [[4, 9]] * 4}, ["kv_bits=[[4, 9]", "1 to 8"]),
        (MIXED | {"cross_kv_rank": 96}, ["cross_kv_rank=96", "latent_group_size=32", "[64]"]),
        (MIXED | {"kv_bits": [[]] * 4}, ["kv_rank=64", "[0, 0, 0, 0]", "within d_model=384"]),
        (MIXED | {"latent_group_size": 4}, ["latent_group_size=4", "power of two from 8"]),
        (MIXED | {"cross_kv_shared": False}, ["cross_kv_shared=True"]),
        ({"latent_dtype": "int4", "cross_cache": "key_value"}, ["latent_dtype='int4'", "latent_dtype=['int4', None]"]),
    ],
)
def test_invalid_fields_are_named_with_value_and_range(fields, names):
    with pytest.raises(ValueError) as error:
        WhisperMLAConfig(**fields)
    for name in names:
        assert name in str(error.value)


def test_json_round_trip(tmp_path):
    ranks = {"kv_rank": [8, 16, 32, 40], "cross_kv_rank": 7, "audio_kv_rank": 5}
    config = WhisperMLAConfig(**ranks, latent_dtype=("int4", None), latent_group_size=8)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "whisper_mla"
    assert saved["kv_rank"] == [8, 16, 32, 40]
    assert saved["latent_dtype"] == ["int4", None]
    assert WhisperMLAConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"latent_dtype": "int8"}, 64),
        ({"latent_dtype": ["int8", None], "cross_kv_rank": 100}, 64),
        ({"latent_dtype": "int8", "kv_rank": [64, 128, 192, 384], "cross_kv_rank": 64}, 64),
        ({"latent_dtype": "int8", "kv_rank": [64, 96, 64, 64]}, 32),
        ({"latent_dtype": "int8", "cross_kv_rank": 32}, 32),
        ({"latent_dtype": "int4"}, 32),
        ({"latent_dtype": ["int8", "int4"]}, 32),
        ({}, 32),
        (MIXED, 32),
    ],
    ids=str,
)
def test_groups_that_fit(fields, size):
    assert WhisperMLAConfig(**fields).fitting_group_size == size


def test_checkpoints_keep_their_groups_and_exact_ones_get_those_that_fit(tmp_path):
    for name, fields in {"old": {"latent_dtype": "int8"}, "exact": {}}.items():
        config = WhisperMLAConfig(**fields)
        assert config.latent_group_size == 32  # what was rounded before there was a choice
        config.save_pretrained(tmp_path / name)
    path = tmp_path / "old" / "config.json"
    assert WhisperMLAConfig.from_pretrained(tmp_path / "old").latent_group_size == 32
    assert WhisperMLAConfig.from_pretrained(tmp_path / "old", latent_dtype="int8").latent_group_size == 32
    saved = json.loads(path.read_text())
    del saved["latent_group_size"]
    path.write_text(json.dumps(saved))
    assert WhisperMLAConfig.from_pretrained(tmp_path / "old").latent_group_size == 32
    sizes = {
        dtype: WhisperMLAConfig.from_pretrained(tmp_path / "exact", latent_dtype=dtype).latent_group_size
        for dtype in ("int8", "int4", None)
    }
    assert sizes == {"int8": 64, "int4": 32, None: 32}
    given = WhisperMLAConfig.from_pretrained(tmp_path / "exact", latent_dtype="int8", latent_group_size=16)
    assert (given.latent_dtype, given.latent_group_size) == ("int8", 16)


def test_fields_survive_the_text_config_and_deepcopy():
    config = WhisperMLAConfig(kv_rank=[10, 20, 30, 40], cross_kv_rank=7)
    for other in (config.get_text_config(decoder=True), copy.deepcopy(config)):
        assert (other.kv_rank, other.cross_kv_rank, other.cross_cache) == ([10, 20, 30, 40], 7, "latent")
    assert config.decoder_layers == 4


def test_from_and_to_whisper_config():
    stock = WhisperConfig(d_model=64, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=77)
    before = stock.to_dict()
    config = WhisperMLAConfig.from_whisper_config(stock, kv_rank=16)
    assert (config.kv_rank, config.vocab_size, config.d_model) == (16, 77, 64)
    assert stock.to_dict() == before
    back = config.to_whisper_config()
    assert type(back) is WhisperConfig
    assert {**back.to_dict(), "architectures": None} == {**before, "architectures": None}


def test_from_whisper_config_refuses_a_converted_one():
    with pytest.raises(ValueError, match="whisper_mla"):
        WhisperMLAConfig.from_whisper_config(WhisperMLAConfig())


def test_mixed_bits_survive_saving_and_say_their_size(tmp_path):
    config = WhisperMLAConfig(**MIXED)
    config.save_pretrained(tmp_path)
    loaded = WhisperMLAConfig.from_pretrained(tmp_path)
    assert loaded.text_latent_bits == [(6, 2)] * 4 and loaded.audio_latent_bits == (4, 3)
    size = cache_size(loaded, positions=10)
    assert size.self_attention == 10 * 4 * (8 * 4 + 2) and size.cross_attention == 1500 * (7 * 4 + 2)


@pytest.mark.parametrize("latent_dtype", ["fp8", ["float8_e4m3fn", None]])
def test_fp8_is_refused_with_what_to_take(latent_dtype):
    with pytest.raises(ValueError, match="Use 'int8'"):
        WhisperMLAConfig(latent_dtype=latent_dtype)
