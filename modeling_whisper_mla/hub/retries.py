"""Repeat a request that the Hub asks to repeat, where huggingface_hub makes it only once."""

import time
from collections.abc import Callable
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError
from transformers.utils import logging

from .errors import causes

RETRIES = 5
LONGEST_WAIT = 300.0  # seconds; the Hub counts requests in windows of five minutes

logger = logging.get_logger(__name__)
Result = TypeVar("Result")


def retried(
    request: Callable[[], Result],
    repeat_on: tuple[int, ...] = (429, 500, 502, 503, 504),
    retries: int = RETRIES,
) -> Result:
    """The result of `request`, called again while the Hub answers with a status that asks for patience.

    Waits as long as the answer says (Retry-After, up to `LONGEST_WAIT`), else 1, 2, 4, 8 and 8 seconds.

    Args:
        request: raises `HfHubHTTPError`, or an error caused by one, if the Hub refuses.
        repeat_on: the statuses after which to call it again.
        retries: how often.

    Raises:
        Exception: what `request` raised, after another status or in the last repetition.
    """
    for tried in range(retries + 1):
        try:
            return request()
        except Exception as error:
            response = next((cause.response for cause in causes(error) if isinstance(cause, HfHubHTTPError)), None)
            if response is None or response.status_code not in repeat_on or tried == retries:
                raise
            asked = response.headers.get("Retry-After", "")
            wait = float(asked) if asked.isdigit() else float(min(2**tried, 8))
            if wait > LONGEST_WAIT:
                raise
            logger.warning(f"The Hub answered {response.status_code}; trying again in {wait:.0f} s.")
            time.sleep(wait)
    raise AssertionError("unreachable")
