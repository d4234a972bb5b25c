"""Convert: from a stock Whisper to latents and back."""

from .errors import ConversionError
from .factorisation import Factors, joint_svd
from .from_whisper import METHODS, from_whisper
from .to_whisper import to_whisper

__all__ = ["METHODS", "ConversionError", "Factors", "from_whisper", "joint_svd", "to_whisper"]
