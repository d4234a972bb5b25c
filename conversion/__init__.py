"""Convert: from a stock Whisper to latents and back."""

from .calibration.calibrate import calibrate
from .calibration.moments import Moments
from .calibration.statistics import Statistics
from .calibration.statistics_file import load_statistics, save_statistics
from .errors import ConversionError
from .from_whisper import from_whisper
from .methods import METHODS
from .methods.factors import Factors
from .presets import PRESETS
from .report.report import write_report
from .source.latent_weights import LatentWeights
from .to_whisper import to_whisper

__all__ = [
    "METHODS",
    "PRESETS",
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
