import os
import subprocess
import sys

import pytest
from rich.console import Console

from whisper_mla.command_line.demo import run_demo


def test_demo_shows_equal_tokens_and_smaller_caches(capsys):
    stock, exact, rounded = run_demo(Console(width=160), limit=6)
    assert (stock.total, exact.total) == (7_766_016, 2_347_008)
    assert rounded.total < exact.total / 4
    assert rounded.wer <= 0.02
    assert stock.equal_tokens and exact.equal_tokens
    assert stock.wer == exact.wer == 0.0
    text = capsys.readouterr().out
    assert "tokens equal to stock" in text and "Whisper-MLA, exact" in text and "-69.8%" in text


@pytest.mark.processes
def test_demo_needs_no_network():
    """Run as a user does, with every connection refused."""
    program = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('no network')\n"
        "socket.socket.connect = refuse; socket.create_connection = refuse\n"
        "import sys; sys.argv = ['whisper-mla', 'demo']\n"
        "from whisper_mla.command_line.app import main; main()\n"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "equal" in done.stdout
