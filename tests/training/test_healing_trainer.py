"""The trainer: losses that do not depend on how a batch is divided, a teacher that costs a decoder pass."""

import copy
import math

import pytest
import torch
from datasets import IterableDataset

from tests.training.conftest import copy_of, losses, speech, tiny_whisper
from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.freezing import freeze_except
from whisper_mla.training import HealingTrainer
from whisper_mla.training.losses import cross_entropy
from whisper_mla.training.teacher import can_share_encoder
from whisper_mla.training.word_error_rate import word_error_metric

EXAMPLES = speech()


def student(**conversion) -> WhisperMLAForConditionalGeneration:
    model = WhisperMLAForConditionalGeneration.from_whisper(tiny_whisper(), **conversion)
    freeze_except(model, "decoder_self_attention")
    return model


@pytest.fixture
def make_trainer(arguments, collator):
    def make(model, teacher=None, data=EXAMPLES, **changes):
        return HealingTrainer(
            model=model, args=arguments(**changes), teacher=teacher, train_dataset=data, data_collator=collator
        )

    return make


def count_calls(module: torch.nn.Module) -> list:
    calls = []
    module.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("distil", [False, True])
@pytest.mark.parametrize("is_stock", [False, True])
def test_accumulation_gives_the_loss_and_the_weights_of_one_batch(make_trainer, is_stock, distil):
    results = []
    for size, accumulation in ((4, 1), (1, 4), (2, 2)):
        model = tiny_whisper() if is_stock else student(kv_rank=8)
        freeze_except(model, "decoder_self_attention")
        teacher = tiny_whisper(seed=3 if is_stock else 0) if distil else None
        changes = {"loss": "distillation", "attention_output_weight": 0.5} if distil else {}
        trainer = make_trainer(
            model,
            teacher,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            optim="sgd",
            learning_rate=0.1,
            **changes,
        )
        trainer.train()
        results.append((losses(trainer), copy_of(trainer.model)))
    for loss, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, results[0][1][name], rtol=1e-4, atol=1e-6, msg=name)


def test_plain_seq2seq_trainer_gets_the_loss_of_one_batch_too(arguments, collator):
    from transformers import Seq2SeqTrainer

    results = []
    for size, accumulation in ((4, 1), (1, 4)):
        args = arguments(per_device_train_batch_size=size, gradient_accumulation_steps=accumulation)
        trainer = Seq2SeqTrainer(model=student(kv_rank=8), args=args, train_dataset=EXAMPLES, data_collator=collator)
        trainer.train()
        results.append(losses(trainer))
    assert results[1] == pytest.approx(results[0], rel=1e-5)


def test_loss_of_the_model_with_and_without_a_count(collator):
    model, batch = student(kv_rank=8).eval(), collator(EXAMPLES[:3])
    count = (batch["labels"] != -100).sum()
    with torch.no_grad():
        mean = model(**batch)
        torch.testing.assert_close(mean.loss, cross_entropy(mean.logits, batch["labels"], count))
        torch.testing.assert_close(model(**batch, num_items_in_batch=2 * count).loss, mean.loss / 2)
        as_tuple = model(**batch, num_items_in_batch=count, return_dict=False)
    torch.testing.assert_close(as_tuple[0], mean.loss)


def test_encoder_runs_once_per_batch_and_the_teachers_never(make_trainer):
    model, teacher = student(kv_rank=8), tiny_whisper()
    encoders = [count_calls(module.get_encoder()) for module in (model, teacher)]
    decoders = [count_calls(module.get_decoder()) for module in (model, teacher)]
    trainer = make_trainer(model, teacher, loss="distillation", max_steps=3)
    trainer.train()
    assert trainer.shares_encoder
    assert [len(calls) for calls in encoders] == [3, 0]
    assert [len(calls) for calls in decoders] == [3, 3]


@pytest.mark.parametrize(
    ("conversion", "parts"),
    [
        ({"kv_rank": 8, "audio_kv_rank": 8}, "decoder_self_attention"),
        ({"kv_rank": 8}, ["decoder_self_attention", "encoder_self_attention"]),
    ],
)
def test_teacher_encodes_by_itself_where_it_must(make_trainer, conversion, parts):
    model, teacher = student(**conversion), tiny_whisper()
    freeze_except(model, parts)
    calls = count_calls(teacher.get_encoder())
    trainer = make_trainer(model, teacher, loss="distillation")
    trainer.train()
    assert not trainer.shares_encoder
    assert len(calls) == 2


def test_another_encoder_is_not_shared():
    model = student(kv_rank=8)
    assert can_share_encoder(model, tiny_whisper())
    assert not can_share_encoder(model, tiny_whisper(seed=5))


def test_shared_and_own_encoding_give_the_same_loss(make_trainer):
    found = []
    for shares in (True, False):
        trainer = make_trainer(student(kv_rank=8), tiny_whisper(), loss="distillation", max_steps=1)
        trainer.shares_encoder = shares
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_an_exact_conversion_has_nothing_to_learn_from_its_source(make_trainer):
    everything = {"hidden_state_weight": 1.0, "attention_output_weight": 1.0}
    exact = make_trainer(student(), tiny_whisper(), loss="distillation", max_steps=1, **everything)
    lossy = make_trainer(student(kv_rank=4), tiny_whisper(), loss="distillation", max_steps=1, **everything)
    logs = []
    for trainer in (exact, lossy):
        trainer.train()
        logs.append(next(entry for entry in trainer.state.log_history if "loss" in entry))
    for name in ("divergence", "hidden_state", "attention_output"):
        assert abs(logs[0][name]) < 1e-6
        assert logs[1][name] > 1e-3
    weighted = logs[1]["divergence"] + 0.8 * logs[1]["cross_entropy"]
    assert logs[1]["loss"] == pytest.approx(weighted + logs[1]["hidden_state"] + logs[1]["attention_output"], rel=1e-5)


def test_distillation_moves_the_student_to_its_teacher(make_trainer):
    trainer = make_trainer(
        student(kv_rank=8),
        tiny_whisper(),
        loss="distillation",
        cross_entropy_weight=0.0,
        max_steps=15,
        learning_rate=3e-3,
        per_device_train_batch_size=16,
    )
    trainer.train()
    found = losses(trainer)
    assert found[-1] < 0.7 * found[0]


def test_only_the_named_tensors_change(make_trainer):
    model = student(kv_rank=8, cross_kv_rank=12)
    before, expected = copy_of(model), set(freeze_except(model, "latent").names)
    make_trainer(model, tiny_whisper(), loss="distillation", hidden_state_weight=1.0, weight_decay=0.0).train()
    assert {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])} == expected


def test_gradient_checkpointing_changes_no_loss(make_trainer):
    found = []
    for checkpointing in (False, True):
        trainer = make_trainer(
            student(kv_rank=8),
            tiny_whisper(),
            loss="distillation",
            attention_output_weight=1.0,
            gradient_checkpointing=checkpointing,
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_spec_augment_masks_while_training_only(make_trainer, collator):
    model = student(kv_rank=8)
    model.config.update({"apply_spec_augment": True, "mask_feature_prob": 0.5, "mask_feature_length": 2})
    collator.with_attention_mask = True
    trainer = make_trainer(model, max_steps=1)
    seen = []
    model.get_encoder().register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].clone()))
    trainer.train()
    assert (seen[0] == 0).all(-1).any()
    model.eval()
    model(**collator(EXAMPLES[:4]))
    assert not (seen[1] == 0).all(-1).any()


def test_schedule_of_the_papers_code(make_trainer):
    trainer = make_trainer(
        student(kv_rank=8),
        max_steps=12,
        warmup_steps=3,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": 4, "decay_type": "1-sqrt"},
        learning_rate=1e-3,
    )
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "loss" in entry]
    expected = [0, 1 / 3, 2 / 3, *[1.0] * 5, *[1 - math.sqrt(step / 4) for step in range(4)]]
    assert rates == pytest.approx([1e-3 * factor for factor in expected], abs=1e-9)


def test_bfloat16(make_trainer):
    trainer = make_trainer(student(kv_rank=8), tiny_whisper(), loss="distillation", bf16=True, max_steps=1)
    plain = make_trainer(student(kv_rank=8), tiny_whisper(), loss="distillation", max_steps=1)
    for one in (trainer, plain):
        one.train()
    assert losses(trainer) == pytest.approx(losses(plain), rel=0.02)
    assert losses(trainer) != losses(plain)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"vocab_size": 1900}, "vocab_size is 1900, the student's is 1864"),
        ({"d_model": 64}, "d_model is 64, the student's is 32"),
        ({"num_mel_bins": 12}, "num_mel_bins is 12"),
    ],
)
def test_teacher_that_does_not_fit(make_trainer, shape, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(student(kv_rank=8), tiny_whisper(**shape), loss="distillation")


def test_teacher_with_other_layers_fits_unless_layers_are_compared(make_trainer):
    teacher = tiny_whisper(decoder_layers=3)
    make_trainer(student(kv_rank=8), teacher, loss="distillation")
    with pytest.raises(ValueError, match="decoder_layers is 3, the student's is 2"):
        make_trainer(student(kv_rank=8), teacher, loss="distillation", hidden_state_weight=1.0)


def test_bad_arguments(make_trainer, arguments):
    model = student(kv_rank=8)
    with pytest.raises(ValueError, match="a teacher is needed"):
        make_trainer(model, loss="distillation")
    with pytest.raises(ValueError, match="none of its parameters trains"):
        make_trainer(copy.deepcopy(model).requires_grad_(False))
    for changes, message in (
        ({"loss": "mse"}, "loss='mse': expected 'cross_entropy' or 'distillation'"),
        ({"divergence_weight": -1.0}, "divergence_weight=-1.0: expected 0 or more"),
        ({"temperature": 0.0}, "temperature=0.0: expected a number above 0"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1: not supported"),
        (
            {"max_steps": 5, "warmup_steps": 3, "lr_scheduler_kwargs": {"num_decay_steps": 4}},
            "max_steps=5: shorter than warm-up and decay together",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            arguments(**changes)


def test_a_stream_too_short_for_one_step_does_not_run_for_ever(make_trainer):
    stream = IterableDataset.from_generator(lambda: iter(EXAMPLES[:4]))
    enough = make_trainer(student(kv_rank=8), data=stream, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    enough.train()
    assert len(losses(enough)) == 2
    short = make_trainer(student(kv_rank=8), data=stream, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="fewer batches than gradient_accumulation_steps=4"):
        short.train()


def test_evaluation_is_in_each_utterances_own_language(make_trainer, tiny_processor, monkeypatch):
    model = student(kv_rank=8)
    data = [*speech(2, language="de"), *speech(1, language="en")]
    trainer = make_trainer(model, predict_with_generate=True, per_device_eval_batch_size=3)
    trainer.compute_metrics = word_error_metric(tiny_processor.tokenizer)
    heard = []
    generate = type(model).generate
    monkeypatch.setattr(
        type(model), "generate", lambda self, *a, **k: (heard.append(k.get("language")), generate(self, *a, **k))[1]
    )
    metrics = trainer.evaluate(data)
    assert heard == [["<|de|>", "<|de|>", "<|en|>"]]
    assert math.isfinite(metrics["eval_loss"])
    assert {"eval_wer", "eval_wer_de", "eval_wer_en"} <= set(metrics)
