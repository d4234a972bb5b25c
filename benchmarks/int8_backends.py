"""A step of decoding with int8 weights and forbidden tokens, by the way that they are done, alternating in one process.

    python benchmarks/int8_backends.py

Random weights of Whisper's dimensions, one thread, processor time, which busy neighbours change less than the clock.
"""

import copy
import time

import torch
import transformers
import typer
from result_files import write_results
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_
from transformers import WhisperForConditionalGeneration
from transformers.utils.logging import disable_progress_bar, tqdm

from whisper_mla import WhisperMLAForConditionalGeneration, generation_whisper_mla, quantize_weights
from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation.decode_timing import decode
from whisper_mla.int8_linear import Int8Linear

SETTINGS = [(1, 1), (8, 1), (1, 5)]
# As many as whisper-base forbids, at every place and at the beginning.
FORBIDDEN = (list(range(1, 89)), [220, 50257])


class OneScale(torch.nn.Module):
    """PyTorch's dynamic linear: one scale for all rows of the input."""

    def __init__(self, layer: Int8Linear):
        super().__init__()
        zeros = torch.zeros(layer.out_features, dtype=torch.long)
        weight = torch._make_per_channel_quantized_tensor(layer.weight, layer.scale.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(weight, layer.bias)

    def forward(self, inputs):
        return torch.ops.quantized.linear_dynamic(inputs, self.packed, False)


def models(size: str) -> dict[str, torch.nn.Module]:
    stock = WhisperForConditionalGeneration(whisper_config(size, encoder_layers=1)).eval()
    exact = WhisperMLAForConditionalGeneration.from_whisper(stock)
    ours = quantize_weights(copy.deepcopy(exact))
    dynamic = copy.deepcopy(ours)
    for name, layer in list(dynamic.named_modules()):
        if isinstance(layer, Int8Linear):
            parent, _, child = name.rpartition(".")
            setattr(dynamic.get_submodule(parent), child, OneScale(layer))
    ao = copy.deepcopy(exact)
    ao.proj_out.weight = torch.nn.Parameter(ao.proj_out.weight.clone())
    rounded = {name for name, layer in ours.named_modules() if isinstance(layer, Int8Linear)}
    quantize_(ao, Int8DynamicActivationInt8WeightConfig(), filter_fn=lambda _, name: name in rounded)
    return {"float32": exact, "ours": ours, "one scale for all rows": dynamic, "torchao": ao}


def main(
    size: str = typer.Option("base", help="Whisper's dimensions."),
    tokens: int = typer.Option(16, help="Per generate."),
    rounds: int = typer.Option(3, help="Alternations; the least of them is reported."),
    name: str = typer.Option("int8_backends", help="Of the result files."),
):
    """Time a step of every backend, and of ours with Transformers' own processors of forbidden tokens."""
    transformers.logging.set_verbosity_error()
    disable_progress_bar()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    quicker = generation_whisper_mla.with_quicker_suppression
    ways = [(backend, model, quicker) for backend, model in models(size).items()]
    ways.append(("ours, Transformers' suppression", ways[1][1], lambda processors: processors))
    rows, raw = [], []
    for batch_size, num_beams in tqdm(SETTINGS, desc="Settings"):
        found: dict[str, list[float]] = {backend: [] for backend, *_ in ways}
        for number in range(rounds + 1):
            for backend, model, suppression in ways:
                generation_whisper_mla.with_quicker_suppression = suppression
                start = time.process_time()
                decode(model, batch_size, num_beams, tokens if number else 2, FORBIDDEN)
                if number:  # the first is for warming up
                    found[backend].append((time.process_time() - start) * 1000 / tokens)
        raw.append({"batch_size": batch_size, "num_beams": num_beams, "processor_ms_per_step": found})
        rows.append([f"batch {batch_size}, {num_beams} beam(s)", *(f"{min(times):.1f}" for times in found.values())])
    note = (
        f"Milliseconds of processor time per step of generate(), one thread, the least of {rounds} alternations; "
        f"random weights of whisper-{size}'s dimensions, encoder output given. All int8 models round the same layers."
    )
    write_results(name, note, ["setting", *(backend for backend, *_ in ways)], rows, raw)


if __name__ == "__main__":
    typer.run(main)
