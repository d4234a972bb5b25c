"""`whisper-mla transcribe`: files in, transcripts out, in batches, with progress."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from whisper_mla.hub.checkpoint_folder import check_writable
from whisper_mla.hub.whole_file import write_whole
from whisper_mla.transcription.audio import AudioError
from whisper_mla.transcription.compiled_decoding import compile_decoding
from whisper_mla.transcription.loading import load_for_transcription
from whisper_mla.transcription.subtitles import SubtitleOptions
from whisper_mla.transcription.transcriber import Transcriber
from whisper_mla.transcription.transcript_files import TIMED, output_names, render
from whisper_mla.transcription.voice_activity import VoiceActivityDetector

from . import console, fallback_options
from .transcribe_run import Job, run_batches

Timestamps = Literal["none", "segment", "word"]
Format = Literal["text", "json", "srt", "vtt", "tsv", "csv"]
Task = Literal["transcribe", "translate"]
Dtype = Literal["float32", "float16", "bfloat16"]
Channels = Literal["mix", "split"]
Compiled = Annotated[
    bool, typer.Option("--compile", help="Compile decoding steps: slow to start, then faster; for much audio.")
]


def transcribe(
    model: Annotated[str, typer.Argument(help="A checkpoint: a folder or a Hub id.", show_default=False)],
    audio: Annotated[list[Path], typer.Argument(help="Audio files of any length and rate.", show_default=False)],
    language: Annotated[str | None, typer.Option(help="Name or code; default: the model's, or detected.")] = None,
    task: Annotated[Task | None, typer.Option(help="Default: the model's.")] = None,
    timestamps: Annotated[
        Timestamps | None,
        typer.Option(help="Default: segment where the format has times.", show_default=False),
    ] = None,
    num_beams: Annotated[int, typer.Option(min=1, help="1 is greedy decoding.")] = 1,
    batch_size: Annotated[int, typer.Option(min=1, help="Files decoded at once.")] = 8,
    file_format: Annotated[Format, typer.Option("--format", help="Of the transcripts.")] = "text",
    channels: Annotated[Channels, typer.Option(help="split: transcribe each apart, a speaker in each.")] = "mix",
    vad: Annotated[bool, typer.Option("--vad", help="Skip what holds no speech (extra: whisper-mla[vad]).")] = False,
    vad_threshold: Annotated[float, typer.Option(help="Probability of speech.")] = 0.5,
    temperatures: fallback_options.Temperatures = fallback_options.TEMPERATURES,
    compression_ratio_threshold: fallback_options.CompressionRatioThreshold = fallback_options.COMPRESSION_RATIO,
    logprob_threshold: fallback_options.LogprobThreshold = fallback_options.LOGPROB,
    no_speech_threshold: fallback_options.NoSpeechThreshold = fallback_options.NO_SPEECH,
    condition_on_prev_tokens: fallback_options.ConditionOnPrevTokens = False,
    line_width: Annotated[
        int | None,
        typer.Option(min=1, help="Of subtitles, in characters; default: no limit.", show_default=False),
    ] = None,
    lines: Annotated[int, typer.Option(min=1, help="In a cue of subtitles, with --line-width.")] = 2,
    highlight_words: Annotated[
        bool, typer.Option("--highlight-words", help="In vtt, underline each word as it is spoken.")
    ] = False,
    output_dir: Annotated[
        Path | None, typer.Option(help="Write one file per audio here instead of printing.", show_default=False)
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Skip audio whose transcript is in OUTPUT_DIR.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, …; default: an accelerator if any.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float32 on the CPU, else the checkpoint's.")] = None,
    weights: Annotated[
        Literal["int8"] | None, typer.Option(help="Round weights to 8 bits on loading: faster on CPUs.")
    ] = None,
    compiled: Compiled = False,
    revision: Annotated[str | None, typer.Option(help="Of a Hub checkpoint.", show_default=False)] = None,
):
    needs_times = file_format in TIMED
    if highlight_words and (file_format != "vtt" or timestamps not in (None, "word")):
        raise typer.BadParameter("--highlight-words needs --format vtt and --timestamps word.")
    if timestamps is None:
        timestamps = "word" if highlight_words else "segment" if needs_times else "none"
    options = fallback_options.parse(
        temperatures, compression_ratio_threshold, logprob_threshold, no_speech_threshold, condition_on_prev_tokens
    )
    subtitles = SubtitleOptions(line_width, lines, highlight_words)
    if needs_times and timestamps == "none":
        raise typer.BadParameter(f"--format {file_format} needs --timestamps segment or word.")
    if needs_times and output_dir is None and len(audio) > 1:
        raise typer.BadParameter(f"--format {file_format} with several files needs --output-dir.")
    if resume and output_dir is None:
        raise typer.BadParameter("--resume needs --output-dir.")

    names = output_names(audio, file_format) if output_dir else [""] * len(audio)
    if output_dir:
        if output_dir.exists() and not output_dir.is_dir():
            raise ValueError(f"--output-dir {output_dir}: exists and is not a folder.")
        check_writable(output_dir / names[0])
    work = [Job(path, name) for path, name in zip(audio, names, strict=True)]
    if resume and output_dir:
        work = [job for job in work if not (output_dir / job.name).exists()]
    if resume and len(work) < len(audio):
        console.note(f"{len(audio) - len(work)} of {len(audio)} already transcribed.")
    if not work:
        return
    detector = VoiceActivityDetector(vad_threshold) if vad else None
    loaded, processor = load_for_transcription(model, device, dtype, revision, weights)
    if loaded.config.model_type == "whisper":
        console.note(f"Note: {model} is a stock Whisper; its cache is not latent.")
    if compiled:
        compile_decoding(loaded)
    transcriber = Transcriber(loaded, processor, language, task, timestamps, num_beams, options)

    if output_dir:
        output_dir.mkdir(parents=True, exist_ok=True)
    failures = fallbacks = 0
    skipped = 0.0
    results = []
    for job, result in run_batches(transcriber, work, batch_size, channels == "split", detector):
        if isinstance(result, AudioError):
            failures += 1
            console.error(str(result))
            continue
        fallbacks, skipped = fallbacks + result.fallbacks, skipped + result.skipped_seconds
        if output_dir:
            write_whole(output_dir / job.name, render(result, file_format, str(job.audio), subtitles))
        elif file_format == "json":
            results.append(render(result, file_format, str(job.audio)))
        else:
            heading = f"{job.audio}: " if len(audio) > 1 else ""
            print(heading + render(result, file_format, subtitles=subtitles), end="", flush=True)
    if results:
        print("[\n" + ",\n".join(text.rstrip() for text in results) + "\n]" if len(audio) > 1 else results[0].rstrip())
    if output_dir:
        console.note(f"{len(work) - failures} transcripts written to {output_dir}")
    if fallbacks or skipped:
        console.note(f"{fallbacks} windows decoded at higher temperatures; {skipped:.1f} s without speech skipped.")
    if failures:
        console.note(f"{failures} of {len(audio)} files could not be read.")
        raise typer.Exit(1)
