"""`transformers serve` for a converted model, on one small machine.

Transformers' server finds a model's class by its name in Transformers itself, where ours is not: this puts it there and
then runs `transformers serve` with the same options. Needs `pip install "transformers[serving]" librosa`. That server
knows neither language nor prompt, and cuts off audio longer than the model's window.

    python examples/serve_with_transformers.py whisper-small-mla --device cpu --dtype float32 --port 8000
"""

import sys

import transformers
from transformers.cli.transformers import main

import whisper_mla

transformers.WhisperMLAForConditionalGeneration = whisper_mla.WhisperMLAForConditionalGeneration

if __name__ == "__main__":
    sys.argv[1:] = ["serve", *sys.argv[1:]]
    main()
