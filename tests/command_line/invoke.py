"""Run the command line within the process of a test, as a user calls it."""

from typing import Any

from typer.testing import CliRunner

from whisper_mla.command_line.app import app


def run(*arguments, code: int = 0) -> Any:
    """The result of `whisper-mla ARGUMENTS…`, which must exit with `code`."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result


def error_line(*arguments) -> str:
    """The one line on standard error that a command fails with."""
    result = run(*arguments, code=1)
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(lines) == 1, result.output
    return lines[0]
