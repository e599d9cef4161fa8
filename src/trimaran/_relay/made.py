"""Transports that a relay makes again: what says which, and what opens them.

In: a blueprint, secret headers. Out: what batches are bound to; a transport.
Does not know: connections, outlets, when headers are there.

To agents and relays the secret headers of a transport are what a token is for the origin's
wire: one word that comes over the socket and is in memory alone. What batches are bound to
names them by what stands for a secret on a disk (_spool/values.py).
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping

import msgspec
import trio

from trimaran._decision import url_problem
from trimaran._spool.values import Binding, stand_in_for
from trimaran._transport import Answer, Blueprint, Request, Transport

__all__ = [
    "Made",
    "SecretHeaders",
    "account_of",
    "bound_to",
    "described",
    "made_from",
    "made_transport",
    "problem_with_made",
    "sealed",
    "shown",
]

_WORD = "made"
"""Begins what such batches are bound to, in the place of a tier."""

_NO_ACCOUNT = "-"

_SCHEME = "Bearer "
"""What an endpoint puts before its token."""


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What batches are bound to that a transport of the host's is to send."""

    name: str
    """Of the destination."""
    account: str
    """Stands for its secret headers; "" where it has none."""
    blueprint: Blueprint


class SecretHeaders:
    """The secret headers of an agent's transport, where an account has its tokens.

    Args:
        token: from :func:`sealed`.
    """

    def __init__(self, token: str) -> None:
        self._token = token

    @property
    def held(self) -> str | None:
        """They are always there."""
        return self._token

    @property
    def next_refresh_at(self) -> float:
        """There are never others."""
        return float("inf")

    async def current(self) -> str | None:
        """They, as a word."""
        await trio.lowlevel.checkpoint()
        return self._token

    async def renewed(self, *, after: str | None) -> str | None:
        """They, where another word was tried; there are no fresh ones."""
        await trio.lowlevel.checkpoint()
        return None if after == self._token else self._token

    def refuse(self, token: str) -> None:
        """Whoever refuses them, they stay what they are."""


def described(
    name: str, blueprint: Blueprint, headers: Mapping[str, str]
) -> tuple[Binding, SecretHeaders | None]:
    """What an agent's batches are bound to; and what goes to the relay where an account's
    token would.

    Args:
        name: of the destination.
        blueprint: of the transport that would send.
        headers: its secret ones.
    """
    token = sealed(headers)

    def bind() -> str:
        account = account_of(token, blueprint.url)
        return bound_to(Made(name=name, account=account, blueprint=blueprint))

    return (bind, SecretHeaders(token)) if token else (bind(), None)


def sealed(headers: Mapping[str, str]) -> str:
    """*headers* as one word that can stand where a token does; "" for none."""
    if not headers:
        return ""
    lower = {name.lower(): value for name, value in headers.items()}
    return b64encode(msgspec.json.encode(lower, order="sorted")).decode()


def account_of(token: str, url: str) -> str:
    """What stands for sealed headers at *url*, and does not tell them. Takes a tenth of a
    second: call it from a thread.
    """
    return stand_in_for(token, url) if token else ""


def bound_to(made: Made) -> str:
    """What batches are bound to: all that decides where they go, but no secret."""
    blueprint = made.blueprint
    return (
        f"{_WORD} {made.name} {blueprint.kind} {blueprint.url} {made.account or _NO_ACCOUNT}"
        f" {blueprint.version} {blueprint.settings}"
    )


def made_from(destination: str) -> Made | None:
    """What :func:`bound_to` was given; None for what is bound otherwise."""
    words = destination.split(" ", 6)
    if len(words) != 7 or words[0] != _WORD or not (words[5].isascii() and words[5].isdigit()):
        return None
    return Made(
        name=words[1],
        account="" if words[4] == _NO_ACCOUNT else words[4],
        blueprint=Blueprint(kind=words[2], url=words[3], version=int(words[5]), settings=words[6]),
    )


def problem_with_made(made: Made) -> str | None:
    """Why this process cannot make such a transport; None if it can."""
    problem = url_problem(made.blueprint.url, with_token=False)
    if problem is not None:
        return f"the URL {problem}"
    from trimaran.otlp.blueprint import settings_from  # noqa: PLC0415 - few relays need it
    from trimaran.otlp.form import problem_with_form  # noqa: PLC0415 - as above

    try:
        settings = settings_from(made.blueprint)
    except ValueError as error:
        return str(error)
    return problem_with_form(settings.encoding)


def made_transport(made: Made, *, max_connections: int) -> Transport:
    """The transport of an agent's, here. Its headers come with each request.

    Raises:
        ValueError: it cannot be made; see :func:`problem_with_made`.
    """
    return _MadeTransport(made, max_connections)


def shown(destination: str) -> str:
    """A destination for people: without what nobody reads."""
    made = made_from(destination)
    if made is None:
        return destination
    return f"{made.name}: {made.blueprint.kind} {made.blueprint.url}"


class _MadeTransport:
    """Takes out of each request the headers that its endpoint put there as a token."""

    def __init__(self, made: Made, max_connections: int) -> None:
        from trimaran.otlp.blueprint import settings_from  # noqa: PLC0415 - as above
        from trimaran.otlp.transport import OtlpTransport  # noqa: PLC0415 - as above

        self._transport = OtlpTransport(
            settings_from(made.blueprint), max_connections=max_connections, names_process=False
        )

    async def attempt(self, request: Request) -> Answer:
        """See :class:`~trimaran.Transport`."""
        token = request.headers.get("authorization", "").removeprefix(_SCHEME)
        return await self._transport.attempt_with(request, _opened(token))

    async def aclose(self) -> None:
        """Close all connections."""
        await self._transport.aclose()


def _opened(token: str) -> dict[str, str]:
    """What :func:`sealed` was given."""
    if not token:
        return {}
    return msgspec.json.decode(b64decode(token), type=dict[str, str])
