"""What the command line makes of difficult audio: a transcript or one line, times within the file, valid subtitles.

    python benchmarks/transcription_checks.py MODEL FOLDER

Every file of FOLDER (noise, silence, music, damage, strange rates and containers, …) is transcribed with word times and
the defaults of `whisper-mla transcribe`, once as it is and once with `--vad`. Subtitles are read by packages that
have nothing to do with this one (srt, webvtt-py). A window loops if its text compresses by more than the threshold 2.4.
"""

import argparse
from io import StringIO
from pathlib import Path

import srt
import torch
import webvtt
from result_files import write_results

from whisper_mla import WhisperMLAForConditionalGeneration
from whisper_mla.conversion.source.processor import load_processor
from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError, read_audio
from whisper_mla.transcription.fallback import FallbackOptions
from whisper_mla.transcription.subtitles import SubtitleOptions
from whisper_mla.transcription.transcriber import Transcriber
from whisper_mla.transcription.transcript import Transcript
from whisper_mla.transcription.transcript_files import render
from whisper_mla.transcription.voice_activity import VoiceActivityDetector


def checks(transcript: Transcript, seconds: float) -> dict:
    """What holds for one transcript of a file of `seconds`."""
    spans = [*transcript.segments, *transcript.words]
    subtitles = SubtitleOptions(line_width=42)
    shown = list(srt.parse(render(transcript, "srt", subtitles=subtitles), ignore_errors=False)) if spans else []
    captions = webvtt.from_buffer(StringIO(render(transcript, "vtt", subtitles=subtitles))).captions
    ratios = [part.compression_ratio or 0.0 for part in transcript.segments]
    return {
        "times inside": all(0 <= span.start <= span.end <= round(seconds + 0.005, 2) for span in spans),
        "words inside segments": all(
            any(part.start <= word.start and word.end <= part.end for part in transcript.segments)
            for word in transcript.words
        ),
        "subtitles valid": len(shown) == len(captions)
        and all(one.start < one.end and one.content.strip() for one in shown)
        and all(shown[i].start <= shown[i + 1].start for i in range(len(shown) - 1)),
        "loops": max(ratios, default=0.0) > (FallbackOptions().compression_ratio_threshold or 0),
        "fallbacks": transcript.fallbacks,
        "skipped": transcript.skipped_seconds,
        "text": transcript.text,
    }


def shortened(text: str, length: int = 70) -> str:
    text = text.replace("|", "/").replace("\n", " ")
    return text if len(text) <= length else text[: length - 1] + "…"


def yes(value: bool) -> str:
    return "yes" if value else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a stock checkpoint; it is converted without loss")
    parser.add_argument("folder", type=Path, help="of audio files")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = WhisperMLAForConditionalGeneration.from_whisper(arguments.model, dtype=torch.float32).eval()
    transcriber = Transcriber(model, load_processor(arguments.model), timestamps="word")
    detector = VoiceActivityDetector()
    rows, raw = [], []
    for path in sorted(arguments.folder.iterdir()):
        if path.suffix == ".txt":
            continue
        try:
            audio = read_audio(path)
        except AudioError as error:
            line = str(error).replace(str(path.parent) + "/", "")
            rows.append([path.name, "–", "–", "–", "–", "–", "–", "–", shortened(f"Error: {line}")])
            raw.append({"file": path.name, "error": line})
            continue
        seconds = len(audio) / SAMPLING_RATE
        for with_vad in (False, True):
            stretches = [detector(audio)] if with_vad else None
            found = checks(transcriber([audio], stretches=stretches)[0], seconds)
            raw.append({"file": path.name, "seconds": round(seconds, 2), "vad": with_vad, **found})
            rows.append(
                [
                    path.name + (", --vad" if with_vad else ""),
                    f"{seconds:.1f}",
                    yes(found["times inside"]),
                    yes(found["words inside segments"]),
                    yes(found["subtitles valid"]),
                    "LOOPS" if found["loops"] else "no",
                    str(found["fallbacks"]),
                    f"{found['skipped']:.1f}",
                    shortened(found["text"]) or "(nothing)",
                ]
            )
            print(rows[-1], flush=True)
    write_results(
        "transcription_checks",
        "Difficult audio with the defaults of `whisper-mla transcribe --timestamps word`, with and without `--vad`. "
        "Times inside: of words and segments, within the file. Subtitles: srt and vtt, 42 characters a line, as the "
        "packages srt and webvtt-py read them.",
        ["file", "s", "times inside", "words in segments", "valid subtitles", "loop", "fallbacks", "s skipped", "text"],
        rows,
        raw,
    )


if __name__ == "__main__":
    main()
