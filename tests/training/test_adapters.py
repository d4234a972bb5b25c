"""LoRA and DoRA on the latent projections: every adapter learns, and merging changes no output."""

import pytest
import torch

from tests.training.conftest import speech, tiny_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.training import HealingTrainer
from whisper_mla.training.adapters import add_adapters


def adapted(**lora):
    model = WhisperMLAForConditionalGeneration.from_whisper(
        tiny_whisper(), kv_rank=8, cross_kv_rank=12, audio_kv_rank=16
    )
    return add_adapters(model, **{"r": 2, "lora_alpha": 4, **lora})


@pytest.mark.parametrize("use_dora", [False, True])
def test_all_adapters_train_nothing_else_does_and_they_merge(arguments, collator, use_dora):
    model = adapted(use_dora=use_dora)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # k, v and down projection of two decoder and two encoder layers, k and v of two cross-attentions, one shared down.
    assert len(names) == (3 if use_dora else 2) * (3 * 4 + 2 * 2 + 1)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    trainer = HealingTrainer(
        model=model,
        args=arguments(loss="distillation", max_steps=3, weight_decay=0.0),
        teacher=tiny_whisper(),
        train_dataset=speech(),
        data_collator=collator,
    )
    trainer.train()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == names

    batch = collator(speech(2))
    model.eval()
    with torch.no_grad():
        expected = model(**batch).logits
        tokens = model.generate(input_features=batch["input_features"], language="en")
        merged = model.merge_and_unload()
        assert type(merged) is WhisperMLAForConditionalGeneration
        torch.testing.assert_close(merged(**batch).logits, expected, rtol=1e-4, atol=1e-4)
        assert torch.equal(merged.generate(input_features=batch["input_features"], language="en"), tokens)
        stock = merged.to_whisper()
        torch.testing.assert_close(stock(**batch).logits, expected, rtol=1e-3, atol=1e-3)


def test_an_adapted_encoder_is_not_shared(arguments, collator):
    trainer = HealingTrainer(
        model=adapted(), args=arguments(loss="distillation"), teacher=tiny_whisper(), data_collator=collator
    )
    assert not trainer.shares_encoder


def test_bad_adapters():
    exact = WhisperMLAForConditionalGeneration.from_whisper(tiny_whisper())
    with pytest.raises(ValueError, match="no latent of a rank below d_model"):
        add_adapters(exact, r=2)
    with pytest.raises(ValueError, match="unexpected keyword argument 'rank'"):
        adapted(rank=2)
