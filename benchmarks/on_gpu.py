"""Memory and speed on one GPU, for `on_gpu.sh`: what needs torch and Transformers only.

python benchmarks/on_gpu.py memory|speed|compile OUT --device cuda --size small
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

from whisper_mla.configuration import whisper_config
from whisper_mla.evaluation.device_name import device_name
from whisper_mla.evaluation.memory import Setting, memory_of, stock_and_latent
from whisper_mla.evaluation.memory_process import measure, measure_growth
from whisper_mla.evaluation.speed import SpeedSetting, candidates, measure_speed, speed_ups


def memory(size: str, device: str, batch: int, lengths: list[int], seconds: float, save: Callable) -> None:
    """The paper's protocol, and 448 positions with 5 beams."""
    value, found = 4 if device == "cpu" else 2, {}
    setting = Setting(batch, lengths[-1], 1, value)
    for name, config in stock_and_latent(whisper_config(size), lengths[-1]).items():
        peaks, reason = measure_growth(config, setting, lengths, seconds, device)
        rows = [
            {
                "positions": length,
                "computed": memory_of(config, Setting(batch, length, 1, value)).total,
                "peak": peaks.get(length),
                "reason": None if length in peaks else reason,
            }
            for length in lengths
        ]
        found[name] = {"batch_size": batch, "paper": rows}
        save(found)
        print(name, rows, flush=True)
    few = Setting(min(batch, 8), min(lengths[-1], 448), 5, value)
    for name, config in stock_and_latent(whisper_config(size), few.positions).items():
        one = measure(config, few, seconds, device)
        found[name]["beams"] = {"setting": vars(few), "peak": one.peak, "held": one.held, "reason": one.reason}
        print(name, found[name]["beams"], flush=True)
        save(found)


def speed(size: str, device: str, settings: list[SpeedSetting], seconds: float, rounds: int, compiled: bool) -> dict:
    """Milliseconds per token and stock's time by each, in float16 (float32 on a CPU)."""
    models = candidates(whisper_config(size), max(one.tokens for one in settings) + 1, compiled=compiled)
    if compiled:
        models = [one for one in models if one.name in ("stock", "exact") or one.compiled]
    dtype = "float32" if device == "cpu" else "float16"
    table = measure_speed(models, settings, dtype, rounds, device, seconds)
    ratios = speed_ups(table)
    return {
        name: [
            {
                **vars(setting),
                "milliseconds": timed.milliseconds,
                "reason": timed.reason,
                "speed_up": ratios[name][setting],
            }
            for setting, timed in answers.items()
        ]
        for name, answers in table.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["memory", "speed", "compile"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="small")
    parser.add_argument("--batches", type=int, nargs="*", default=[1, 8, 64])
    parser.add_argument("--lengths", type=int, nargs="*", default=[32, 64, 128, 256, 448, 512, 1024, 2048, 4096])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=50.0, help="of one process")
    given = parser.parse_args()
    common = (given.size, given.device)
    settings = [SpeedSetting(batch, given.tokens) for batch in given.batches]
    versions = {name: __import__(name).__version__ for name in ("torch", "transformers", "whisper_mla")}
    where = {"size": given.size, "device": device_name(given.device), "versions": versions, "cores": os.cpu_count()}
    given.out.mkdir(parents=True, exist_ok=True)
    path = given.out / f"gpu_{given.what}.json"

    def save(found: dict) -> None:
        path.write_text(json.dumps({**where, "results": found}, indent=1) + "\n")

    if given.what == "memory":
        memory(*common, given.batches[-1], given.lengths, given.seconds, save)
    elif given.what == "speed":
        settings.append(SpeedSetting(given.batches[0], given.tokens, 5))
        save(speed(*common, settings, given.seconds, given.rounds, False))
    else:
        save(speed(*common, settings[:2], given.seconds, 1, True))
    print(path, flush=True)


if __name__ == "__main__":
    main()
