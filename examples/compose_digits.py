"""Strings of spoken digits, composed on the fly from recordings of single digits.

What it costs: milliseconds per string. What comes out: utterances like those of whisper-digits' test sets, one to
fourteen digits of one speaker with pauses, in a data set that `finetune.py` trains on (`digit_takes` in digits.yaml).
Listen to some:

    python examples/compose_digits.py train_takes/ strings/ --count 10

The recordings come in the layout of an audio folder: `metadata.csv` with `file_name`, `text` and `speaker`.
"""

import csv
from pathlib import Path

import numpy as np
import soundfile
import soxr
import typer
from torch.utils.data import Dataset

from whisper_mla.transcription.audio import SAMPLING_RATE

# Pauses in seconds, drawn evenly: before the first digit, between digits, between groups, after the last.
LEAD, GAP, PAUSE, TAIL = (0.0, 0.4), (0.02, 0.2), (0.8, 1.5), (0.0, 0.5)
LONGEST, MOST_DIGITS, NEW_GROUP, LOUDEST = 9.9, 14, 0.12, 0.2


class ComposedDigits(Dataset):
    """`size` strings of digits; string `i` is a function of `seed` and `i` alone, whoever asks and in whatever order.

    Args:
        folder: recordings of single digits, with `metadata.csv`.
        size: number of strings.
        seed: of the strings.
        language: of the examples.

    Raises:
        ValueError: no metadata.csv, or columns are missing.
    """

    def __init__(self, folder: str | Path, size: int, seed: int = 0, language: str = "en"):
        self.size, self.seed, self.language = size, seed, language
        table = Path(folder) / "metadata.csv"
        if not table.is_file():
            raise ValueError(f"digit_takes: no {table}. Give the folder of the recordings of single digits.")
        with open(table, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        if not rows or not {"file_name", "text", "speaker"} <= set(rows[0]):
            raise ValueError(f"{table}: expected rows with file_name, text and speaker.")
        self.speakers: dict[str, list[tuple[np.ndarray, str]]] = {}
        for row in rows:
            recording = soundfile.read(table.parent / row["file_name"], dtype="float32")
            self.speakers.setdefault(row["speaker"], []).append((_at_16_khz(*recording), row["text"]))

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict:
        """`{"audio": {"array", "sampling_rate"}, "text", "language"}`, at most ten seconds."""
        if not 0 <= index < self.size:
            raise IndexError(index)
        random = np.random.default_rng((self.seed, index))
        takes = self.speakers[random.choice(sorted(self.speakers))]
        wanted = random.integers(1, MOST_DIGITS + 1)
        pieces, words = [_silence(random.uniform(*LEAD))], []
        seconds = len(pieces[0]) / SAMPLING_RATE
        while len(words) < wanted:
            samples, word = takes[random.integers(len(takes))]
            pause = 0.0 if not words else random.uniform(*(PAUSE if random.random() < NEW_GROUP else GAP))
            if words and seconds + pause + len(samples) / SAMPLING_RATE > LONGEST - TAIL[1]:
                break
            pieces += [_silence(pause), samples]
            words.append(word)
            seconds += pause + len(samples) / SAMPLING_RATE
        array = np.concatenate([*pieces, _silence(random.uniform(*TAIL))])
        array *= LOUDEST / max(float(np.abs(array).max()), 1e-6)
        audio = {"array": array, "sampling_rate": SAMPLING_RATE}
        return {"audio": audio, "text": " ".join(words), "language": self.language}


def _at_16_khz(samples: np.ndarray, rate: int) -> np.ndarray:
    samples = samples if rate == SAMPLING_RATE else soxr.resample(samples, rate, SAMPLING_RATE)
    # Recordings differ in loudness by a factor of thirty, the digits of one string must not.
    return samples / max(float(np.abs(samples).max()), 1e-6)


def _silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLING_RATE), dtype=np.float32)


def main(takes: Path, target: Path, count: int = 10, seed: int = 0):
    """Write strings as an audio folder."""
    target.mkdir(parents=True, exist_ok=True)
    with open(target / "metadata.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["file_name", "text"])
        strings = ComposedDigits(takes, count, seed)
        for index in range(count):
            example, name = strings[index], f"{index:05d}.flac"
            soundfile.write(target / name, example["audio"]["array"], SAMPLING_RATE)
            table.writerow([name, example["text"]])


if __name__ == "__main__":
    typer.run(main)
