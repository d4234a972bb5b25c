"""A push that is killed leaves the repository as it was or complete, and can be started again."""

import os
import random
import signal
import threading

import pytest

from tests.hub import client
from tests.hub.conftest import contents, served

pytestmark = pytest.mark.kills

NAME = "org/tiny-mla"
KILLS = 20


@pytest.fixture(scope="module")
def moments() -> list[float]:
    """Where in a push it is killed, as fractions of its events."""
    generator = random.Random(20)
    return sorted(generator.random() for _ in range(KILLS))


def kill(hub, clients, is_moment, *arguments, **keywords) -> None:
    """Start a push and kill it when `is_moment` says so of an event; nothing that is under way then counts."""
    started = threading.Event()
    killed = []

    def on_event(event: str) -> bool:
        if not killed and is_moment(event):
            started.wait()
            os.kill(running.process.pid, signal.SIGKILL)
            killed.append(event)
        return bool(killed)

    hub.on_event = on_event
    running = clients.start(client.push, *arguments, **keywords)
    started.set()
    with pytest.raises(EOFError):
        running.outcome()
    assert running.process.exitcode == -signal.SIGKILL
    hub.on_event = None


def test_killed_at_any_moment(hub, clients, checkpoint, moments):
    files = contents(checkpoint)
    events: list[str] = []
    hub.on_event = events.append
    arguments = {"max_shard_size": "60KB"}
    for _ in range(2):  # what huggingface_hub asks only once is not among the events that count
        hub.repositories.clear(), hub.lfs.clear(), events.clear()
        clients.value(client.push, checkpoint, "org/reference", **arguments)
    complete = served(hub.head("org/reference"))
    steps = len(events)
    assert steps > KILLS

    outcomes = []
    for moment in moments:
        hub.repositories.clear(), hub.lfs.clear()
        events_left = iter(range(int(moment * steps), -1, -1))
        kill(hub, clients, lambda event, left=events_left: next(left) == 0, checkpoint, NAME, **arguments)
        after = served(hub.head(NAME)) if NAME in hub.repositories else {}
        assert after in ({}, complete)
        assert contents(checkpoint) == files
        outcomes.append(bool(after))
        clients.value(client.push, checkpoint, NAME, **arguments)
        assert served(hub.head(NAME)) == complete
        assert len(hub.commits(NAME)) == 1
    assert outcomes == sorted(outcomes)  # once the commit is made it stays made


@pytest.mark.parametrize("stage", ["half received", "handled"])
def test_killed_while_replacing_another_checkpoint(hub, clients, checkpoint, stage):
    """The old shards go in the commit that brings the new weights, not before and not after."""
    clients.value(client.push, checkpoint, NAME, max_shard_size="60KB")
    old = served(hub.head(NAME))
    kill(hub, clients, lambda event: event.startswith(stage) and "/commit/" in event, checkpoint, NAME)
    assert served(hub.head(NAME)) == (old if stage == "half received" else contents(checkpoint))
