"""Recordings read and decoded on worker threads, ahead of the model, in batches of like length."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice

import numpy as np

from whisper_mla.transcription.audio import SAMPLING_RATE, AudioError

from .sources import Item

# Audio held in memory at most, but for one file that is longer: 0.46 GB of samples.
SECONDS_AHEAD = 7200.0
# Where nothing tells how long a recording is.
UNKNOWN_SECONDS = 30.0

Audio = np.ndarray | AudioError
Read = tuple[Item, Audio]


def by_length(items: Iterable[Item], workers: int, pool: int | None = None) -> Iterator[tuple[Item, float]]:
    """Items with their seconds, those of one language together, long ones first.

    A batch is decoded until its longest file ends, so like lengths waste least; the longest first shows at once whether
    memory suffices, and leaves the short ones to fill the end.

    Args:
        items: any number, streamed or not.
        workers: threads that read headers.
        pool: how many are sorted at once; None: all.
    """
    stream = iter(items)
    with ThreadPoolExecutor(workers) as threads:
        while group := list(islice(stream, pool)):
            lengths = threads.map(lambda item: item.length(), group)
            known = [(item, seconds or UNKNOWN_SECONDS) for item, seconds in zip(group, lengths, strict=True)]
            yield from sorted(known, key=lambda pair: (pair[0].language or "", -pair[1]))


def read_ahead(
    items: Iterable[tuple[Item, float]], workers: int, seconds_ahead: float = SECONDS_AHEAD
) -> Iterator[Read]:
    """Read audio on threads while what was read before is worked on.

    Args:
        items: with their seconds, as far as known.
        workers: threads.
        seconds_ahead: of audio that wait at most.

    Yields:
        tuple: each item in order with its samples, or with what is wrong with it.
    """
    stream = iter(items)
    waiting: deque[tuple[Item, float, Future[Audio]]] = deque()
    ahead = 0.0
    threads = ThreadPoolExecutor(workers)
    try:
        more = True
        while more or waiting:
            while more and (not waiting or (ahead < seconds_ahead and len(waiting) < 64 * workers)):
                following = next(stream, None)
                if following is None:
                    more = False
                    break
                item, seconds = following
                waiting.append((item, seconds, threads.submit(_read, item)))
                ahead += seconds
            if waiting:
                item, seconds, future = waiting.popleft()
                ahead -= seconds
                yield item, future.result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def batches(
    read: Iterable[Read], size: Callable[[], int], seconds_at_once: float = SECONDS_AHEAD
) -> Iterator[list[Read]]:
    """Group what was read, in order, into batches of one language.

    Args:
        read: from [`read_ahead`].
        size: asked before each batch how many recordings it may hold.
        seconds_at_once: of audio in a batch at most, but for one file that is longer.
    """
    batch: list[Read] = []
    seconds = 0.0
    limit = size()
    for item, audio in read:
        length = 0.0 if isinstance(audio, AudioError) else len(audio) / SAMPLING_RATE
        if batch and (
            len(batch) >= limit or batch[0][0].language != item.language or seconds + length > seconds_at_once
        ):
            yield batch
            batch, seconds, limit = [], 0.0, size()
        batch.append((item, audio))
        seconds += length
    if batch:
        yield batch


def _read(item: Item) -> Audio:
    try:
        return item.load()
    except AudioError as error:
        return error
    except Exception as error:  # a dataset's reader has errors of its own
        return AudioError(f"{item.id}: cannot be read ({type(error).__name__}: {error}).")
