"""Whisper-MLA in vLLM: what `vllm serve` loads when this package is installed beside it.

vLLM calls [`register`] in each of its processes (entry point group `vllm.general_plugins`). The model is in `model.py`,
which is imported only when a Whisper-MLA folder is served.
"""

import logging

# vLLM's classes of models and caches change from one minor release to the next. setup.cfg has the same bounds.
SUPPORTED_VLLM = "vllm>=0.32,<0.33"
_SUPPORTED_RELEASES = ((0, 32),)


def register() -> None:
    """Make vLLM know the architecture `WhisperMLAForConditionalGeneration`. Calling it again changes nothing.

    Beside a vLLM that has not been tried it registers nothing and logs why: other models are served as before.
    """
    import vllm

    release = tuple(int(part) for part in vllm.__version__.split(".")[:2] if part.isdigit())
    if release not in _SUPPORTED_RELEASES:
        logging.getLogger("vllm.whisper_mla").error(
            "whisper-mla: vLLM %s cannot serve Whisper-MLA models with this release of whisper-mla, which was written "
            "for %s: vLLM's model and cache classes differ between releases. Install one of those. Other models are "
            "served as before.",
            vllm.__version__,
            SUPPORTED_VLLM,
        )
        return
    from vllm import ModelRegistry

    import whisper_mla  # noqa: F401  (AutoConfig then knows the model type)

    from .served_config import register_config

    architecture = "WhisperMLAForConditionalGeneration"
    register_config(architecture)
    ModelRegistry.register_model(architecture, f"whisper_mla.vllm_plugin.model:{architecture}")


__all__ = ["SUPPORTED_VLLM", "register"]
