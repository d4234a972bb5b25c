"""Word error rates of one or more models, on one process or on those of torchrun: `whisper-mla evaluate` as a script.

What it costs: one transcription of the dataset for each model, shared by the processes. What comes out: tables, and in
the folder of --output a JSON report, Markdown, a plot of WER against cache size, and the transcripts.

    python examples/evaluate.py whisper-small-mla --dataset recordings/ --output results
    torchrun --nproc_per_node 2 examples/evaluate.py openai/whisper-small whisper-small-mla --dataset recordings/
"""

import transformers
import typer

from whisper_mla.command_line.app import one_clear_line
from whisper_mla.command_line.evaluate_command import evaluate

if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    typer.run(one_clear_line(evaluate))
