"""Adapters as a source: refused with the way out."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model

from tests.conftest import random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion import ConversionError

LORA = LoraConfig(r=2, target_modules=["q_proj"])


def message(source) -> str:
    with pytest.raises(ConversionError) as caught:
        WhisperMLAForConditionalGeneration.from_whisper(source)
    return str(caught.value)


def test_a_peft_model():
    model = get_peft_model(random_whisper(), LORA)
    assert "PeftModel: merge the adapter first (model.merge_and_unload())" in message(model)
    merged = model.merge_and_unload()
    assert WhisperMLAForConditionalGeneration.from_whisper(merged).config.d_model == 32


def test_a_model_with_an_adapter():
    model = inject_adapter_in_model(LORA, random_whisper())  # add_adapter does this and sets the mark
    model._hf_peft_config_loaded = True
    assert "WhisperForConditionalGeneration: has an adapter" in message(model)


@pytest.mark.parametrize("as_name", [str, lambda path: path])
def test_the_folder_of_an_adapter_names_its_base(tmp_path, as_name):
    model = get_peft_model(random_whisper(), LORA)
    model.peft_config["default"].base_model_name_or_path = "openai/whisper-small"
    model.save_pretrained(tmp_path)
    found = message(as_name(tmp_path))
    assert f"{tmp_path}: is an adapter of openai/whisper-small, not a model" in found
    assert "merge_and_unload" in found
    (tmp_path / "adapter_config.json").write_text("{")
    assert "is an adapter of some model" in message(as_name(tmp_path))


def test_what_is_no_source_at_all():
    assert "int: no source" in message(3)
    assert "Linear: a module" in message(torch.nn.Linear(2, 2))
