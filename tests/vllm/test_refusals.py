"""What vLLM cannot hold is refused by name; vLLM is not needed."""

import logging
import sys
import types

import numpy as np
import pytest

from whisper_mla import WhisperMLAConfig
from whisper_mla.configuration.presets import whisper_config
from whisper_mla.vllm_plugin import SUPPORTED_VLLM, register
from whisper_mla.vllm_plugin.refusals import REFUSED_OPTIONS, check_audio, check_folder, check_served


def base(**latent_fields) -> WhisperMLAConfig:
    return WhisperMLAConfig.from_whisper_config(whisper_config("base"), **latent_fields)


@pytest.mark.parametrize("latent_dtype", ["int8", ["int4", None], [None, "int4"]])
def test_rounded_latents_are_refused(latent_dtype):
    with pytest.raises(ValueError, match=r"latent_dtype=.*int[48].*--hf-overrides"):
        check_served(base(latent_dtype=latent_dtype))
    mixed = {"kv_rank": 64, "kv_bits": [[4, 2]] * 6, "cross_kv_rank": 64, "cross_kv_bits": [4, 2]}
    with pytest.raises(ValueError, match=r"latent_dtype='mixed'.*another conversion"):
        check_served(base(latent_dtype="mixed", **mixed))


def test_a_quantised_cache_is_refused():
    with pytest.raises(ValueError, match=r"--kv-cache-dtype fp8: .*kv_rank"):
        check_served(base(), cache_dtype="fp8")


def test_quantised_weights_are_refused():
    with pytest.raises(ValueError, match=r"--quantization fp8: .*floating point.*bfloat16"):
        check_served(base(), quantization="fp8")


def test_drafts_of_other_models_are_refused():
    with pytest.raises(ValueError, match=r"--speculative-config with the method 'draft_model': .*'ngram'"):
        check_served(base(), draft="draft_model")
    check_served(base(), draft="ngram")


def test_ranks_are_those_of_the_weights():
    with pytest.raises(ValueError, match=r"--hf-overrides kv_rank: .*convert again"):
        check_served(base(kv_rank=8), overridden={"latent_dtype": None, "kv_rank": 8})
    check_served(base(), overridden={"latent_dtype": None})


@pytest.mark.parametrize("option", REFUSED_OPTIONS)
def test_an_option_without_use_is_refused(option):
    with pytest.raises(ValueError, match=rf"{option}: .*\."):
        check_served(base(), options=[option])


def test_heads_that_cannot_be_split_are_refused():
    with pytest.raises(ValueError, match=r"--tensor-parallel-size 3: 8 decoder and 8 encoder attention heads"):
        check_served(base(), tensor_parallel_size=3)


@pytest.mark.parametrize("fields", [{}, {"kv_rank": [1, 2, 3, 4, 5, 512], "cross_kv_rank": 7}])
def test_every_rank_is_served(fields):
    check_served(base(**fields), cache_dtype="auto", tensor_parallel_size=2)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["processor_config.json"], "tokenizer"),
        (["tokenizer.json"], "feature extractor"),
        (["vocab.json", "preprocessor_config.json"], None),
        (["tokenizer.json", "processor_config.json"], None),
    ],
)
def test_a_folder_that_cannot_be_read_is_refused(files, said, tmp_path):
    for file in files:
        (tmp_path / file).touch()
    if said is None:
        check_folder(str(tmp_path), str(tmp_path))
    else:
        with pytest.raises(ValueError, match=rf"has no {said} \(.*AutoProcessor"):
            check_folder(str(tmp_path), str(tmp_path))


def test_a_tokenizer_of_its_own_and_a_name_on_the_hub(tmp_path):
    (tmp_path / "processor_config.json").touch()
    check_folder(str(tmp_path), "openai/whisper-base")
    check_folder("someone/whisper-base-mla", "someone/whisper-base-mla")


@pytest.mark.parametrize(("samples", "said"), [([], "0 samples"), ([0.1, np.nan], "NaN"), ([-np.inf], "infinite")])
def test_audio_without_sound_is_refused(samples, said):
    with pytest.raises(ValueError, match=f"file: .*{said}"):
        check_audio(np.array(samples, dtype=np.float32))
    check_audio(np.zeros(1, dtype=np.float32))  # silence is audio


def test_another_vllm_is_left_alone_with_a_reason(monkeypatch, caplog):
    """Its ModelRegistry is not asked for: this module has none."""
    other = types.ModuleType("vllm")
    other.__version__ = "0.31.2"
    monkeypatch.setitem(sys.modules, "vllm", other)
    with caplog.at_level(logging.ERROR):
        register()
    assert "vLLM 0.31.2 cannot serve Whisper-MLA models" in caplog.text and SUPPORTED_VLLM in caplog.text
