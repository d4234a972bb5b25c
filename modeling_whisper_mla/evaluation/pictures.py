"""Pictures on disk: whole or not at all."""

import os
import tempfile
from pathlib import Path
from typing import Any


def save_whole(figure: Any, path: Path, dpi: int) -> None:
    """Write a Matplotlib figure as PNG aside, then in place of `path`."""
    descriptor, aside = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".png", dir=path.parent)
    os.close(descriptor)
    try:
        figure.savefig(aside, dpi=dpi, metadata={"Software": None})
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise
