"""Where the commands speak: results on standard output, everything else on standard error."""

from rich.console import Console

output, messages = Console(), Console(stderr=True)


def note(text: str) -> None:
    """One line for the user, whole whatever the width of the terminal, on standard error."""
    messages.print(text, highlight=False, markup=False, soft_wrap=True)


def error(text: str) -> None:
    """One line beginning with "Error:" on standard error."""
    messages.print("[red]Error:[/red] ", end="", highlight=False)
    note(" ".join(text.split()))
