"""`whisper-mla push`: a checkpoint folder to the Hub, in one commit."""

from pathlib import Path
from typing import Annotated

import typer

from whisper_mla.hub.push import has_processor, push_folder

from . import console


def push(
    folder: Annotated[Path, typer.Argument(help="A folder that convert or save_pretrained wrote.", show_default=False)],
    repository: Annotated[str, typer.Argument(help="org/name; made if missing.", show_default=False)],
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, typer.Option(help="Branch to commit to, made if missing; default: main.", show_default=False)
    ] = None,
    create_pr: Annotated[bool, typer.Option("--create-pr", help="Open a pull request instead.")] = False,
    max_shard_size: Annotated[str, typer.Option(help="Split larger weight files.")] = "5GB",
    commit_message: Annotated[str | None, typer.Option(help="Of the commit.", show_default=False)] = None,
):
    if folder.is_dir() and not has_processor(folder):
        console.note(f"Note: {folder} has no processor; transcribing needs one.")
    pushed = push_folder(
        folder,
        repository,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        max_shard_size=max_shard_size,
        commit_message=commit_message,
    )
    console.output.print(f"{repository}: {pushed.pr_url or pushed.commit_url}", highlight=False, soft_wrap=True)
