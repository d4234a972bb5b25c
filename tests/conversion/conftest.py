import pytest

from tests.conftest import random_whisper
from whisper_mla.conversion import calibrate

from .tiny import random_statistics


@pytest.fixture(scope="session")
def tiny():
    """A stock Whisper with random weights, d = 32. Tests do not modify it."""
    return random_whisper()


@pytest.fixture(scope="session")
def tiny_statistics(tiny):
    return random_statistics(tiny)


@pytest.fixture(scope="session")
def clip_paths(clips):
    """Twelve bundled recordings, 2 to 7 s."""
    return [clip["path"] for name, clip in clips.items() if name != "long"]


@pytest.fixture(scope="session")
def digits_statistics(digits, processor, clip_paths):
    """Of eight clips, two of them held out."""
    return calibrate(digits, clip_paths[:8], processor, language="en", encoder=True)
