"""Convert: from a stock Whisper to latents and back."""

from .calibrate import calibrate
from .calibration import Statistics
from .errors import ConversionError
from .factors import Factors
from .from_whisper import from_whisper
from .latent_weights import LatentWeights, Moments
from .methods import METHODS
from .report import write_report
from .statistics_file import load_statistics, save_statistics
from .to_whisper import to_whisper

__all__ = [
    "METHODS",
    "ConversionError",
    "Factors",
    "LatentWeights",
    "Moments",
    "Statistics",
    "calibrate",
    "from_whisper",
    "load_statistics",
    "save_statistics",
    "to_whisper",
    "write_report",
]
