"""Two promises of healing, on whisper-digits: only what was named changes, and a killed run ends with the same weights.

    python benchmarks/healing_checks.py --data DATA

A conversion at rank 16 is healed with distillation, once in one go and once killed by SIGKILL at a random step and
started again with the same command. Every tensor is compared with the conversion's and between both runs.
"""

import argparse
import random
import subprocess
import tempfile
from pathlib import Path

import torch
from healing import MODEL, Job, finetune_command
from result_files import write_results
from safetensors.torch import load_file

from whisper_mla import WhisperMLAForConditionalGeneration

JOB = Job("joint_svd", 16, {"kv_rank": 16, "method": "joint_svd"}, "distillation")
TRAINED = ".decoder.layers.", ".self_attn."


def run_and_kill(command: list[str], step: int) -> None:
    """Start a training run and kill it once it has logged `step` steps."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        seen, rest = 0, b""
        while chunk := process.stdout.read1(65536):
            rest += chunk
            seen += rest.count(b"'loss'")
            rest = rest[-6:] if not rest.endswith(b"'loss'") else b""
            if seen >= step:
                process.kill()
                break
        process.wait()
    if seen < step:
        raise RuntimeError(f"The run ended with exit status {process.returncode} after {seen} steps, before {step}.")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "final" / "model.safetensors")


def compare(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> dict[str, list[str]]:
    """Names of tensors that changed and that did not."""
    if before.keys() != after.keys():
        raise RuntimeError(f"Tensors came or went: {sorted(before.keys() ^ after.keys())}")
    found: dict[str, list[str]] = {"changed": [], "same": []}
    for name, tensor in before.items():
        found["same" if torch.equal(tensor, after[name]) else "changed"].append(name)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train_takes, calibration and dev")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--save-steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the random step")
    arguments = parser.parse_args()
    step = random.Random(arguments.seed).randrange(arguments.save_steps + 1, arguments.steps)
    with tempfile.TemporaryDirectory() as folder:
        runs, data = Path(folder), arguments.data.resolve()
        converted = WhisperMLAForConditionalGeneration.from_whisper(MODEL, dtype=torch.float32, **JOB.conversion)
        converted.save_pretrained(runs / "converted" / "final")
        changes = {"save_steps": arguments.save_steps, "logging_steps": 1, "report_to": "none"}
        whole, killed = (
            finetune_command(JOB, runs / name, data, runs, arguments.steps, **changes) for name in ("whole", "killed")
        )
        subprocess.run(whole, check=True)
        run_and_kill(killed, step)
        subprocess.run(killed, check=True)
        before, healed, resumed = (weights(runs / name) for name in ("converted", "whole", "killed"))
    trained, again = compare(before, healed), compare(healed, resumed)
    inside = [name for name in before if all(part in name for part in TRAINED)]
    rows = [
        ["tensors of decoder self-attention", str(len(inside))],
        ["of these changed by healing", str(len(set(inside) & set(trained["changed"])))],
        ["all other tensors", str(len(before) - len(inside))],
        ["of these changed by healing", str(len(set(trained["changed"]) - set(inside)))],
        [
            f"tensors that differ after SIGKILL at step {step} of {arguments.steps} and resuming",
            str(len(again["changed"])),
        ],
    ]
    note = (
        f"whisper-digits, rank 16, {arguments.steps} steps of distillation with `train_only: decoder_self_attention`, "
        f"float32, a checkpoint every {arguments.save_steps} steps. Tensors are compared bit by bit."
    )
    write_results("healing_checks", note, ["what", "count"], rows, {"trained": trained, "resumed": again, "step": step})


if __name__ == "__main__":
    main()
