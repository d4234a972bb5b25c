"""What went wrong between here and the Hub, said in one line with the remedy."""

import errno
from collections.abc import Iterator

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_LOG_IN = "Log in with `hf auth login`, or set HF_TOKEN"


def explain_hub_error(error: BaseException, repo_id: str, revision: str | None = None, writing: bool = False) -> str:
    """One line for whatever huggingface_hub, or Transformers on top of it, raised.

    Args:
        error: what was raised; its causes are searched for the answer of the Hub.
        repo_id: the repository that was asked for.
        revision: of the repository, where one was given.
        writing: whether it was to be changed, which needs other rights than reading.

    Returns:
        str: repository, cause and remedy.
    """
    chain = list(causes(error))
    if any(isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT) for cause in chain):
        where = "" if writing else f" below {constants.HF_HUB_CACHE}. Free some, or set HF_HUB_CACHE to another folder"
        return f"{repo_id}: no space left on the disk{where}."
    # What is nearest to the network says most.
    for cause in reversed(chain):
        if isinstance(cause, HfHubHTTPError) and getattr(cause, "response", None) is not None:
            return f"{repo_id}: {_explain_answer(cause, revision, writing)}"
    if any(isinstance(cause, OfflineModeIsEnabled) for cause in chain) or constants.HF_HUB_OFFLINE:
        if writing:
            return f"{repo_id}: offline mode is on. Unset HF_HUB_OFFLINE."
        return f"{repo_id}: not in the cache, and offline mode is on. Unset HF_HUB_OFFLINE to get it from the Hub."
    for cause in reversed(chain):
        if isinstance(cause, (HTTPError, ConnectionError)):
            reason = f"{type(cause).__name__}: {first_line(cause)}"
            return f"{repo_id}: the Hub cannot be reached at {constants.ENDPOINT} ({reason}). Check the connection."
    return f"{repo_id}: {first_line(_telling(chain))}."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without its full stop; its type if there is no message."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _explain_answer(error: HfHubHTTPError, revision: str | None, writing: bool) -> str:
    status = error.response.status_code
    said = error.server_message or first_line(error)
    if "Invalid credentials" in said:
        return f"the Hub does not accept the token. {_LOG_IN} to a valid one."
    if isinstance(error, RevisionNotFoundError):
        return f"has no branch, tag or commit {revision!r}."
    if isinstance(error, EntryNotFoundError):
        return f"lacks a file ({error.response.url.path})."
    if isinstance(error, GatedRepoError):
        return f"access has to be asked for on its page. {_LOG_IN} to the account that was granted it."
    if status == 401 and writing:
        return f"not logged in. {_LOG_IN} to a token that may write."
    if isinstance(error, RepositoryNotFoundError) or status == 404:
        return f"no such repository on the Hub, or a private one. Check the name. {_LOG_IN} if it is private."
    if status in (401, 403):
        may = "write" if writing else "read"
        return f"the token may not {may} here ({status}: {said}). Use one that may, or another repository."
    if status == 412:
        return "was changed by others while this was under way. Try again."
    if status == 429:
        return "too many requests (429). Wait a few minutes and try again."
    if status >= 500:
        return f"the Hub has a failure of its own ({status}). Try again later."
    return f"refused by the Hub ({status}: {said})."


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from or while handling, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _telling(chain: list[BaseException]) -> BaseException:
    """The outermost error, but the cause of one that only says where something failed."""
    if len(chain) > 1 and isinstance(chain[0], (RuntimeError, LocalEntryNotFoundError)):
        return chain[1]
    return chain[0]
