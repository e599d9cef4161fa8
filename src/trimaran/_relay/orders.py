"""What a relay is told when it is started.

In: an agent's settings. Out: words of a command line, and back. Pure.
Does not know: how a process is started. No secret is among it: a command line can be read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trimaran._settings import Relay, Settings, Survives

__all__ = ["Orders", "orders_from", "orders_of", "relay_environment", "words_of"]

RETRY_MAX = 30.0
"""Seconds between two attempts at most: there is nobody who waits, and an outage may last."""

_VARIABLES = frozenset(
    {
        "HOME",
        "LANG",
        "PATH",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
        "SYSTEMROOT",
        "TEMP",
        "TMP",
        "TMPDIR",
        "TZ",
        "USER",
        "VIRTUAL_ENV",
    }
)
_PREFIXES = ("COVERAGE_", "LC_", "LD_", "DYLD_", "PYTHON", "XDG_")
_SUFFIX = "_proxy"


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """The values of the process that starts a relay; see :class:`~trimaran.Settings`."""

    directory: str
    idle_timeout: float
    most_bytes: int
    most_seconds: float
    survives: Survives
    max_requests: int
    request_timeout: float
    retry_initial: float
    retry_after_max: float
    retry_budget: float
    unauthorized_interval: float

    def settings(self) -> Settings:
        """The limits for sending. A batch is tried for as long as it is kept."""
        return Settings(
            max_requests=self.max_requests,
            request_timeout=self.request_timeout,
            retry_initial=self.retry_initial,
            retry_max=max(self.retry_initial, RETRY_MAX),
            retry_after_max=self.retry_after_max,
            retry_budget=self.retry_budget,
            retry_timeout=self.most_seconds,
            unauthorized_interval=self.unauthorized_interval,
        )


def orders_of(relay: Relay, settings: Settings) -> Orders:
    """What to tell a relay, whose directory is chosen."""
    assert relay.directory is not None
    return Orders(
        directory=str(Path(relay.directory).absolute()),
        idle_timeout=relay.idle_timeout,
        most_bytes=relay.most_bytes,
        most_seconds=relay.most_seconds,
        survives=relay.survives,
        max_requests=settings.max_requests,
        request_timeout=settings.request_timeout,
        retry_initial=settings.retry_initial,
        retry_after_max=settings.retry_after_max,
        retry_budget=settings.retry_budget,
        unauthorized_interval=settings.unauthorized_interval,
    )


def words_of(orders: Orders) -> list[str]:
    """The words of a command line."""
    # Not msgspec's JSON, which has no infinity.
    return [json.dumps(msgspec.to_builtins(orders))]


def orders_from(words: list[str]) -> Orders:
    """What :func:`words_of` was given.

    Raises:
        ValueError: the words are others.
    """
    (word,) = words
    return msgspec.convert(json.loads(word), Orders)


def relay_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What of an agent's environment a relay gets: what Python, the network and the place of
    its socket need. The rest is the agent's own: there may be a token in it.
    """
    return {
        name: value
        for name, value in environ.items()
        if name in _VARIABLES or name.startswith(_PREFIXES) or name.lower().endswith(_SUFFIX)
    }
