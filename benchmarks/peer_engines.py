"""The engines that `peers.py` compares, each in a process of its own: started with a task as JSON, answers with JSON.

CTranslate2 and whisper.cpp are needed by their own engines only: pip install faster-whisper pywhispercpp
"""

import json
import os
import sys
import time
from collections.abc import Callable

STOCK, EXACT = "stock", "exact"
EXACT_COMPILED, INT8_COMPILED = "exact, compiled", "int8, compiled"
INT8, INT8_LATENTS = "int8", "int8, int8 latents, compiled"
CT2, CT2_INT8 = "CTranslate2", "CTranslate2 int8"
WHISPER_CPP = "whisper.cpp int8"
ENGINES = (STOCK, EXACT, EXACT_COMPILED, INT8, INT8_COMPILED, INT8_LATENTS, CT2, CT2_INT8, WHISPER_CPP)


def timed(work: Callable) -> dict:
    """Seconds that passed, and seconds of processor time over all threads, which a busy neighbour changes less."""
    wall, processor = time.perf_counter(), time.process_time()
    value = work()
    return {
        "seconds": time.perf_counter() - wall,
        "processor_seconds": time.process_time() - processor,
        "value": value,
    }


class InTransformers:
    """Stock Whisper or ours, in plain PyTorch."""

    def __init__(self, engine: str, model: str, threads: int):
        import torch
        import transformers
        from transformers import WhisperForConditionalGeneration, WhisperProcessor

        from whisper_mla import WhisperMLAForConditionalGeneration, quantize_weights
        from whisper_mla.transcription.compiled_decoding import compile_decoding

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(threads)
        self.processor = WhisperProcessor.from_pretrained(model)
        self.model = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
        if engine != STOCK:
            # The method by name: what the latents lose is not measured here.
            latents = {"latent_dtype": "int8", "method": "joint_svd"} if engine == INT8_LATENTS else {}
            self.model = WhisperMLAForConditionalGeneration.from_whisper(self.model, **latents)
        if engine in (INT8, INT8_COMPILED, INT8_LATENTS):
            quantize_weights(self.model)
        if engine == EXACT:
            self.model.expect_many_steps()
        if engine.endswith("compiled"):
            compile_decoding(self.model)

    def decode(self, batch_size: int, num_beams: int, tokens: int) -> int:
        from whisper_mla.evaluation.decode_timing import decode

        generation = self.model.generation_config
        forbidden = generation.suppress_tokens, generation.begin_suppress_tokens
        return decode(self.model, batch_size, num_beams, tokens, forbidden)[1].shape[1] - 1

    def transcribe(self, samples: list, num_beams: int) -> list[str]:
        from whisper_mla.transcription.fallback import NO_FALLBACK
        from whisper_mla.transcription.transcriber import Transcriber

        multilingual = self.model.generation_config.is_multilingual
        language = "en" if multilingual else None
        run = Transcriber(self.model, self.processor, language, None, "segment", num_beams, NO_FALLBACK)
        return [transcript.text for transcript in run(samples)]


class InCTranslate2:
    """CTranslate2, whole files through faster-whisper."""

    def __init__(self, engine: str, model: str, threads: int, width: int):
        from faster_whisper import WhisperModel

        kind = "int8" if engine == CT2_INT8 else "float32"
        self.model = WhisperModel(model, compute_type=kind, cpu_threads=threads, local_files_only=True)
        tokenizer = self.model.hf_tokenizer
        self.start, self.end = map(tokenizer.token_to_id, ("<|startoftranscript|>", "<|endoftext|>"))
        self.width = width

    def decode(self, batch_size: int, num_beams: int, tokens: int) -> int:
        import numpy
        from ctranslate2 import StorageView

        states = numpy.random.default_rng(0).standard_normal((batch_size, 1500, self.width), dtype=numpy.float32)
        results = self.model.model.generate(
            StorageView.from_array(states),
            [[self.start]] * batch_size,
            beam_size=num_beams,
            max_length=2 * tokens,  # of which half are for a prompt
            suppress_tokens=[-1, self.end],  # those of the checkpoint, and no end
        )
        return len(results[0].sequences_ids[0])

    def transcribe(self, samples: list, num_beams: int) -> list[str]:
        found = []
        for audio in samples:  # it decodes a file's windows one by one, as ours does for a single file
            segments, _ = self.model.transcribe(
                audio,
                language="en",
                beam_size=num_beams,
                temperature=0.0,
                condition_on_previous_text=False,
                compression_ratio_threshold=None,
                log_prob_threshold=None,
                no_speech_threshold=None,
            )
            found.append("".join(segment.text for segment in segments))
        return found


class InWhisperCpp:
    """whisper.cpp, through pywhispercpp: whole files only, one after the other."""

    def __init__(self, engine: str, model: str, threads: int):
        from pywhispercpp.model import Model

        self.load = lambda strategy: Model(
            model,
            params_sampling_strategy=strategy,
            redirect_whispercpp_logs_to=None,
            n_threads=threads,
            print_progress=False,
            print_realtime=False,
        )
        self.models: dict = {}

    def transcribe(self, samples: list, num_beams: int) -> list[str]:
        if num_beams not in self.models:
            self.models = {num_beams: self.load(int(num_beams > 1))}
        way: dict = {"greedy": {"best_of": 1}}
        if num_beams > 1:
            way = {"beam_search": {"beam_size": num_beams, "patience": -1.0}}
        options = {"language": "en", "no_context": True, "temperature": 0.0, "temperature_inc": 0.0}
        found = (self.models[num_beams].transcribe(audio, **options, **way) for audio in samples)
        return ["".join(segment.text for segment in segments) for segments in found]


def main() -> None:
    task = json.loads(sys.argv[1])
    common = task["engine"], task["model"], task["threads"]
    engine: InCTranslate2 | InWhisperCpp | InTransformers
    if task["engine"] in (CT2, CT2_INT8):
        engine = InCTranslate2(*common, task["width"])
    else:
        engine = (InWhisperCpp if task["engine"] == WHISPER_CPP else InTransformers)(*common)
    answers = []
    for batch_size, num_beams, tokens in task["decode"]:
        warm = timed(lambda: engine.decode(batch_size, num_beams, 4))["seconds"]  # noqa: B023  # compiled here
        for _ in range(task["repeats"]):
            measured = timed(lambda: engine.decode(batch_size, num_beams, tokens))  # noqa: B023  # called at once
            if measured["value"] != tokens:
                raise RuntimeError(f"{task['engine']}: {measured['value']} tokens, not {tokens}.")
            setting = {"batch_size": batch_size, "num_beams": num_beams, "tokens": tokens}
            answers.append({**setting, "warm_seconds": warm, **measured})
    files = []
    if task["audio"]:
        import soundfile

        limit = int(task["audio_seconds"] * 16_000) if task["audio_seconds"] else None
        samples = [soundfile.read(path, dtype="float32", stop=limit)[0] for path in task["audio"]]
        seconds = sum(map(len, samples)) / 16_000
        for num_beams in task["file_beams"]:
            engine.transcribe([audio[: 16_000 * 2] for audio in samples[:2]], num_beams)  # warm, and compiled
            measured = timed(lambda: engine.transcribe(samples, num_beams))  # noqa: B023
            files.append({"num_beams": num_beams, "files": len(samples), "audio_seconds": seconds, **measured})
    print(json.dumps({"decode": answers, "files": files, "load": os.getloadavg()[0]}))


if __name__ == "__main__":
    main()
