"""The processes of a run: one, or those that `accelerate launch` or torchrun started."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as distributed
from accelerate import PartialState


@dataclass(frozen=True)
class Processes:
    """This process among those that share the work.

    Attributes:
        rank: from 0; 0 speaks and writes.
        count: of all.
    """

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, value: Any) -> list:
        """The values of all processes by rank, on the first; elsewhere an empty list. All must call it."""
        if self.count == 1:
            return [value]
        values: list | None = [None] * self.count if self.is_first else None
        distributed.gather_object(value, values, dst=0)
        return values or []

    def broadcast(self, value: Any) -> Any:
        """The first process's value, everywhere. All must call it."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]


@contextmanager
def launched_processes() -> Iterator[Processes]:
    """Join the processes of `accelerate launch` or torchrun through Accelerate's `PartialState`, or be the only one.

    They exchange results through gloo on every device: what is sent is text. No model is synchronised.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Processes()
        return
    # One process can finish long before another.
    state = PartialState(backend="gloo", timeout=timedelta(days=7))
    try:
        yield Processes(state.process_index, state.num_processes)
    finally:
        state.destroy_process_group()
        PartialState._reset_state()


def device_of_process(device: str | None) -> str | None:
    """`device`, or without one the accelerator that torchrun means for this process."""
    local_rank = os.environ.get("LOCAL_RANK")
    if device is None and local_rank is not None and torch.cuda.is_available():
        return f"cuda:{int(local_rank) % torch.cuda.device_count()}"
    return device
