"""One process of two that train a sharded model (FSDP 2, gloo, CPU); its argument is the file for the weights."""

import os
import sys

import torch
import torch.distributed as distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.conftest import random_features, random_whisper
from whisper_mla import WhisperMLAForConditionalGeneration

LABELS = torch.tensor([[5, 6, 7, 2], [8, 2, -100, -100]])


def make_model() -> WhisperMLAForConditionalGeneration:
    model = WhisperMLAForConditionalGeneration.from_whisper(random_whisper(), kv_rank=8, cross_kv_rank=12)
    model.freeze_except(["latent", "decoder_self_attention"])
    return model.train()


def train(model, features, labels, scale: int = 1) -> None:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        count = (LABELS != -100).sum()
        (scale * model(input_features=features, labels=labels, num_items_in_batch=count).loss).backward()
        optimiser.step()
        optimiser.zero_grad()


def main(out: str) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    rank, size = distributed.get_rank(), distributed.get_world_size()
    model, mesh = make_model(), init_device_mesh("cpu", (size,))
    features = random_features(model)
    for layer in (*model.model.encoder.layers, *model.model.decoder.layers, model):
        fully_shard(layer, mesh=mesh)
    train(model, features[rank : rank + 1], LABELS[rank : rank + 1], scale=size)
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    if rank == 0:
        torch.save(weights, out)
    distributed.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
    # Gloo's threads may still hold Python's tensors while the interpreter shuts down, which would abort the process.
    os._exit(0)
