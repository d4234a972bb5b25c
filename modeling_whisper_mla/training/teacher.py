"""The stock model as a teacher: whether it fits the student, and whether it can read the student's encoder."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def check_teacher(student: PreTrainedModel, teacher: PreTrainedModel, compares_layers: bool = False) -> None:
    """Raise unless `teacher` can teach `student`.

    Args:
        student: what is trained.
        teacher: normally the stock model that the student was converted from.
        compares_layers: whether outputs of decoder layers are compared, which needs as many of them.

    Raises:
        ValueError: a different vocabulary, width, audio input or start token, or a different number of layers.
    """
    fields = {
        "vocab_size": "their distributions over tokens cannot be compared",
        "d_model": "the teacher cannot read the student's encoder output",
        "num_mel_bins": "they do not read the same audio features",
        "max_source_positions": "they do not read the same length of audio",
        "decoder_start_token_id": "they do not read the same text",
    }
    if compares_layers:
        fields["decoder_layers"] = "their layers cannot be compared; set hidden_state_weight and "
        fields["decoder_layers"] += "attention_output_weight to 0"
    for field, consequence in fields.items():
        ours, theirs = getattr(student.config, field), getattr(teacher.config, field)
        if ours != theirs:
            raise ValueError(
                f"teacher: its {field} is {theirs}, the student's is {ours}, so {consequence}. Use the stock model "
                "that the student was converted from."
            )


def can_share_encoder(student: PreTrainedModel, teacher: PreTrainedModel) -> bool:
    """Whether the student's encoder output is and stays the teacher's.

    It is where no parameter of the student's encoder trains (so it must be frozen before) and the two encoders hold
    equal weights, which they do not after `audio_kv_rank`.
    """
    encoder = student.get_encoder()
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        return False
    ours, theirs = encoder.state_dict(), teacher.get_encoder().state_dict()
    return ours.keys() == theirs.keys() and all(
        tensor.shape == theirs[name].shape and torch.equal(tensor.cpu(), theirs[name].cpu().to(tensor.dtype))
        for name, tensor in ours.items()
    )


@contextmanager
def recorded_outputs(modules: list[nn.Module]) -> Iterator[list[Tensor]]:
    """The outputs of `modules` (of tuples the first element) in the order of their calls within the block.

    The hooks are gone when the block ends, so the second forward pass of gradient checkpointing records nothing.
    """
    outputs: list[Tensor] = []

    def record(module, arguments, output):
        outputs.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(record) for module in modules]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The decoder layers of a Whisper, stock or converted, or with adapters."""
    return list(model.get_decoder().layers)


def decoder_attentions(model: PreTrainedModel) -> list[nn.Module]:
    """Self- and cross-attention of all decoder layers."""
    layers: list[Any] = decoder_layers(model)
    return [attention for layer in layers for attention in (layer.self_attn, layer.encoder_attn)]
