"""Work in a fresh process, which may end for want of memory or time: that is a result."""

import json
import os
import subprocess
import sys
from typing import Any

import torch

OUT_OF_MEMORY = "out of memory"
# What PyTorch's allocators and Python say.
_WORDS_OF_WANT = ("can't allocate memory", "MemoryError", "CUDA out of memory", "OutOfMemoryError")


def run_fresh(module: str, job: dict[str, Any], seconds: float) -> tuple[list[Any], str | None]:
    """Run `python -m module`, which reads a job and prints a line of JSON for each of its results.

    Args:
        module: name of the module.
        job: handed to it as JSON on standard input.
        seconds: after which it is ended.

    Returns:
        tuple: the results that it printed, and why there are no more: None if it was done, "out of memory" or "out of
        time".

    Raises:
        RuntimeError: the process failed of anything else; with its message.
    """
    command = [sys.executable, "-m", module]
    variables = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    try:
        done = subprocess.run(
            command, input=json.dumps(job), env=variables, capture_output=True, text=True, check=False, timeout=seconds
        )
    except subprocess.TimeoutExpired as error:
        printed = error.stdout or ""
        return _results(printed if isinstance(printed, str) else printed.decode()), f"out of time ({seconds:.0f} s)"
    found = _results(done.stdout)
    if done.returncode == 0:
        return found, None
    if done.returncode == -9 or is_want_of_memory(done.stderr):
        return found, OUT_OF_MEMORY
    raise RuntimeError(f"the measuring process failed: {done.stderr.strip().splitlines()[-1]}")


def is_want_of_memory(message: str) -> bool:
    """Whether an error's words say that memory did not suffice."""
    return any(words in message for words in _WORDS_OF_WANT)


def _results(printed: str) -> list[Any]:
    whole = printed[: printed.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines() if line[:1] in "{["]
