"""The error of latents in fp8 beside int8 at about the same bytes: the audio's latent of a real model and recording.

    python benchmarks/fp8_latents.py MODEL talk.flac

fp8 is e4m3 with one float16 scale per position, the largest value being fp8's largest; with and without the rotation.
"""

import soundfile
import torch
import transformers
import typer
from result_files import write_results
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from whisper_mla.latent_quantization import hadamard, round_latent


def rounded_fp8(latent: torch.Tensor) -> torch.Tensor:
    scale = (latent.abs().amax(-1, keepdim=True) / torch.finfo(torch.float8_e4m3fn).max).half().float()
    return (latent / scale).to(torch.float8_e4m3fn).float() * scale


def main(model: str, audio: str, name: str = "fp8_latents"):
    """Relative RMS error over the first window of 30 s, padded with silence."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    stock = WhisperForConditionalGeneration.from_pretrained(model, dtype=torch.float32).eval()
    samples, rate = soundfile.read(audio, dtype="float32")
    features = WhisperProcessor.from_pretrained(model)(samples, sampling_rate=rate, return_tensors="pt")
    with torch.inference_mode():
        latent = stock.get_encoder()(features["input_features"]).last_hidden_state
    turn = hadamard(32)
    turned = (latent.unflatten(-1, (-1, 32)) @ turn).flatten(-2)
    back = (rounded_fp8(turned).unflatten(-1, (-1, 32)) @ turn).flatten(-2)
    width = latent.shape[-1]
    ways = {
        "int8, groups of 32": (round_latent(latent, 8, 32), 9.0),
        "int8, groups of 64": (round_latent(latent, 8, 64), 8.5),
        "fp8": (rounded_fp8(latent), 8 + 16 / width),
        "fp8, rotated": (back, 8 + 16 / width),
    }
    raw = {
        way: {"relative_error": ((found - latent).norm() / latent.norm()).item(), "bits": bits}
        for way, (found, bits) in ways.items()
    }
    rows = [[way, f"{found['bits']:.2f}", f"{100 * found['relative_error']:.3f} %"] for way, found in raw.items()]
    note = f"{model}: encoder output of a window of 30 s, rounded: bits per value, with scales, and relative RMS error."
    write_results(name, note, ["way", "bits per value", "error"], rows, raw)


if __name__ == "__main__":
    typer.run(main)
