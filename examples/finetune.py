"""Heal a converted Whisper (or fine-tune any): only the parts that a recipe names train.

    python examples/finetune.py examples/recipes/digits.yaml --output_dir runs/digits
    torchrun --nproc_per_node 4 examples/finetune.py examples/recipes/librispeech-small.yaml

What it costs: each recipe says so in its head. What comes out: `output_dir/final`, a checkpoint with its processor;
`output_dir/results.json`, the word error rate of it; and TensorBoard logs. A run that was killed goes on from its last
checkpoint when it is started again. Every argument of a recipe can be given on the command line too (`--help`).
"""

import json
import os
import sys
from itertools import islice
from pathlib import Path

import torch
from datasets import Dataset, IterableDataset, concatenate_datasets
from torch.utils.data import ConcatDataset
from transformers import AutoModelForSpeechSeq2Seq, EarlyStoppingCallback, WhisperProcessor, set_seed
from transformers.utils import logging

from whisper_mla.conversion import from_whisper
from whisper_mla.conversion.source.loading import load_checkpoint, read_config_fields
from whisper_mla.freezing import freeze_except, trainable_parameters
from whisper_mla.hub.checkpoint_folder import check_target
from whisper_mla.training import HealingTrainer
from whisper_mla.training.adapters import add_adapters
from whisper_mla.training.checkpoints import last_complete_checkpoint, save_final
from whisper_mla.training.checks import check_corpus
from whisper_mla.training.collator import SpeechCollator
from whisper_mla.training.labels import LabelMaker
from whisper_mla.training.recipe import check_same_recipe, parse_recipe, remember_recipe
from whisper_mla.training.speech_data import decode_audio, load_speech, mix
from whisper_mla.training.transcripts import TranscribedSpeech, teacher_transcripts
from whisper_mla.training.word_error_rate import word_error_metric

logger = logging.get_logger("whisper_mla.finetune")


def load_student(model_args, data_args):
    """The model to train, with its processor."""
    hub = {"revision": model_args.revision} if model_args.revision else {}
    dtype = getattr(torch, model_args.dtype)
    read_config_fields(model_args.model, **hub)  # refuse what is no checkpoint in one line
    processor = WhisperProcessor.from_pretrained(model_args.model, **hub)
    if model_args.conversion is None:
        model = load_checkpoint(AutoModelForSpeechSeq2Seq, model_args.model, dtype=dtype, **hub)
    else:
        conversion = dict(model_args.conversion)
        if isinstance(conversion.get("calibration"), int):
            conversion["calibration"] = first_audio(data_args.train, conversion["calibration"])
        # What the conversion loses is to be healed: no refusal, unless the recipe wants one.
        model = from_whisper(model_args.model, dtype=dtype, **{"force": True, **conversion}, **hub)
    if model_args.spec_augment is not None:
        unknown = [name for name in model_args.spec_augment if not name.startswith("mask_")]
        if unknown:
            raise ValueError(f"spec_augment: unknown field {', '.join(unknown)}; expected mask_time_prob, ….")
        model.config.update({"apply_spec_augment": True, **model_args.spec_augment})
    return model, processor


def first_audio(sources, count):
    """Samples of the first utterances of the training sets together, to calibrate a conversion on."""
    corpora = [load_corpus(source) for source in sources]
    share = -(-count // len(corpora))
    return [decode_audio(example["audio"]) for corpus in corpora for example in islice(corpus, share)][:count]


def choose_what_trains(model, model_args):
    if model_args.adapter is not None:
        model = add_adapters(model, **model_args.adapter)
    elif model_args.train_only != "all":
        freeze_except(model, [part.strip() for part in model_args.train_only.split(",")])
    logger.warning(f"{trainable_parameters(model)}.")
    return model


def load_teacher(model_args):
    source = model_args.teacher or (model_args.model if model_args.conversion is not None else None)
    if source is None:
        raise ValueError("teacher: none given, and the model is not converted here. Give the stock checkpoint.")
    hub = {"revision": model_args.revision} if model_args.revision and source == model_args.model else {}
    read_config_fields(source, **hub)
    model = load_checkpoint(AutoModelForSpeechSeq2Seq, source, dtype=getattr(torch, model_args.dtype), **hub)
    return model.eval().requires_grad_(False)


def load_corpus(source):
    if "digit_takes" not in source:
        return load_speech(source)
    from compose_digits import ComposedDigits

    return ComposedDigits(source["digit_takes"], int(source.get("size", 10_000)), int(source.get("seed", 0)))


def training_set(corpora, data_args, seed):
    if not all(isinstance(corpus, Dataset | IterableDataset) for corpus in corpora):
        if data_args.probabilities:
            raise ValueError("probabilities: not for composed digits, nor with label_source: teacher.")
        return ConcatDataset(corpora) if len(corpora) > 1 else corpora[0]
    data = mix(corpora, data_args.probabilities, seed)
    return data.shuffle(seed, buffer_size=data_args.shuffle_buffer) if isinstance(data, IterableDataset) else data


def prepare(arguments):
    """A trainer that is ready for its first step: all that can be wrong with a recipe is found here."""
    recipe = model_args, data_args, args = parse_recipe(arguments)
    args.output_dir = args.output_dir or "runs/" + Path(model_args.model).name
    check_target(Path(args.output_dir) / "final", overwrite=True, source=model_args.model)
    check_same_recipe(recipe, args.output_dir)
    set_seed(args.seed)
    model, processor = load_student(model_args, data_args)
    is_multilingual = getattr(model.generation_config, "is_multilingual", True)
    label_maker = LabelMaker(processor.tokenizer, is_multilingual, data_args.task, data_args.lowercase)
    with_mask = bool(getattr(model.config, "apply_spec_augment", False))
    max_labels = model.config.max_target_positions
    is_teacher_needed = args.loss == "distillation" or data_args.label_source == "teacher"
    teacher = load_teacher(model_args) if is_teacher_needed else None
    model = choose_what_trains(model, model_args)

    def usable(source, needs_text=True):
        extractor = processor.feature_extractor
        return check_corpus(
            load_corpus(source),
            label_maker,
            max_labels,
            extractor.n_samples / extractor.sampling_rate,
            name=source.get("path", "digit_takes"),
            long_audio=data_args.long_audio,
            empty_text=data_args.empty_text,
            needs_text=needs_text,
            num_proc=data_args.check_processes,
        )

    with args.main_process_first(desc="looking at the data"):
        corpora = [usable(source, data_args.label_source == "transcripts") for source in data_args.train]
        evaluation = [usable(source) for source in data_args.evaluation]
    if any(isinstance(corpus, IterableDataset) for corpus in evaluation):
        raise ValueError("evaluation: streaming is not for evaluation sets.")
    remember_recipe(recipe, args.output_dir)
    if data_args.label_source == "teacher":
        transcripts = data_args.transcripts_dir or Path(args.output_dir) / "teacher_transcripts"
        corpora = [
            transcribed(corpus, teacher, processor, label_maker, args, Path(transcripts) / str(index))
            for index, corpus in enumerate(corpora)
        ]
    trainer = HealingTrainer(
        model=model,
        args=args,
        teacher=teacher,
        train_dataset=training_set(corpora, data_args, args.seed),
        eval_dataset=concatenate_datasets(evaluation) if evaluation else None,
        data_collator=SpeechCollator(processor.feature_extractor, label_maker, with_mask),
        processing_class=processor,
        compute_metrics=word_error_metric(processor.tokenizer, data_args.normalizer),
        callbacks=[EarlyStoppingCallback(args.early_stopping_patience)] if args.early_stopping_patience else None,
    )
    return trainer, processor


def transcribed(corpus, teacher, processor, label_maker, args, cache):
    """A corpus with the teacher's transcripts as its text."""
    if isinstance(corpus, IterableDataset):
        raise ValueError("label_source='teacher': not for streams, whose transcripts could not be kept. Do not stream.")
    share = {"rank": args.process_index, "world_size": args.world_size, "batch_size": args.eval_batch_size}
    teacher.to(args.device)
    teacher_transcripts(teacher, processor, corpus, label_maker, cache, **share)
    if args.world_size > 1:
        torch.distributed.barrier()
    transcripts = teacher_transcripts(teacher, processor, corpus, label_maker, cache, **share)
    return TranscribedSpeech(corpus, transcripts)


def main(arguments=None):
    try:
        trainer, processor = prepare(arguments)
    except ValueError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print("Error:", " ".join(str(error).split()), file=sys.stderr)
        raise SystemExit(1) from error
    args = trainer.args
    checkpoint = args.resume_from_checkpoint or last_complete_checkpoint(args.output_dir)
    if checkpoint:
        logger.warning(f"Going on from {checkpoint}.")
    trainer.train(resume_from_checkpoint=checkpoint)
    results = {"step": trainer.state.global_step, "best_checkpoint": trainer.state.best_model_checkpoint}
    if trainer.eval_dataset is not None:
        results |= trainer.evaluate()
    save_final(trainer, processor, Path(args.output_dir) / "final")
    if trainer.is_world_process_zero():
        path = Path(args.output_dir) / "results.json"
        path.with_suffix(".partial").write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".partial").replace(path)
        print(json.dumps(results, indent=1))
    trainer.accelerator.end_training()


if __name__ == "__main__":
    main()
