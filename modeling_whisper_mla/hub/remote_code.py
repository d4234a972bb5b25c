"""The model's source files as they ride along in a checkpoint folder, for `trust_remote_code=True`.

Transformers loads such code from one flat folder, so the package's sub-folders are folded into one and the imports
between the files rewritten. The files are this package's own, which is why they are few and import nothing else of it.
"""

import inspect
import json
import os
import re
from pathlib import Path

from ..configuration.configuration_whisper_mla import WhisperMLAConfig
from ..version import __version__

AUTO_MAP = {
    "AutoConfig": "configuration_whisper_mla.WhisperMLAConfig",
    "AutoModel": "modeling_whisper_mla.WhisperMLAModel",
    "AutoModelForCausalLM": "modeling_whisper_mla.WhisperMLAForCausalLM",
    "AutoModelForSpeechSeq2Seq": "modeling_whisper_mla.WhisperMLAForConditionalGeneration",
}

SOURCE_FILES = (
    "configuration_whisper_mla.py",
    "cache_size.py",
    "kernel_operator.py",
    "decoding_kernel.py",
    "packing_kernels.py",
    "kernel_check.py",
    "absorbed_attention.py",
    "audio_blocks.py",
    "transformers_releases.py",
    "latent_attention.py",
    "latent_quantization.py",
    "mixed_quantization.py",
    "latent_cache.py",
    "int8_linear.py",
    "int8_weights.py",
    "run_time_rounding.py",
    "freezing.py",
    "self_check.py",
    "token_suppression.py",
    "beam_top_k.py",
    "rounded_projection.py",
    "greedy_decoding.py",
    "token_times.py",
    "generation_whisper_mla.py",
    "conversion_record.py",
    "saved_folder.py",
    "remote_code.py",
    "encoder_and_decoder.py",
    "modeling_whisper_mla.py",
    "pipeline_whisper_mla.py",
    "version.py",
)

_HEADER = f"""# whisper-mla {__version__}. Licence: Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0).
# A copy of the package's file, written by save_pretrained() for use without the package (trust_remote_code=True).
"""

# Importing the configuration is the first thing that Transformers does with such a checkpoint.
_REGISTRATION = """

from .pipeline_whisper_mla import register_pipeline  # noqa: E402

register_pipeline()
"""


def write_remote_code(folder: str | os.PathLike) -> None:
    """Write the flat copies of [`SOURCE_FILES`] into `folder`, which must exist.

    Called from a model that was itself loaded from such copies, it copies them.
    """
    for name in SOURCE_FILES:
        text = _locate(name).read_text(encoding="utf-8")
        if not text.startswith("# whisper-mla "):
            text = _HEADER + flatten_imports(text)
            if name == "configuration_whisper_mla.py":
                text += _REGISTRATION
        Path(folder, name).write_text(text, encoding="utf-8")


def flatten_imports(text: str) -> str:
    """`from .package.module import x` as it must read beside `module.py`: `from .module import x`."""
    return re.sub(r"^( *)from \.+(?:\w+\.)*(\w+) import", r"\1from .\2 import", text, flags=re.MULTILINE)


def _locate(name: str) -> Path:
    # An editable install leaves the sub-packages in folders of their own.
    here = Path(__file__).parent
    folders = (here, here.parent, Path(inspect.getfile(WhisperMLAConfig)).parent)
    return next(folder / name for folder in folders if (folder / name).is_file())


def remove_remote_code(folder: str | os.PathLike) -> None:
    """Remove what [`write_remote_code`] or Transformers wrote, and its mention in config.json."""
    for name in SOURCE_FILES:
        Path(folder, name).unlink(missing_ok=True)
    config = Path(folder, "config.json")
    if config.is_file():
        fields = json.loads(config.read_text(encoding="utf-8"))
        if fields.pop("auto_map", None) is not None:
            config.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", encoding="utf-8")
