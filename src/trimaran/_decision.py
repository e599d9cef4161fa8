"""Which tier a telemetry is in, and which switch decided it.

In: the app's name, the account that was looked up, an environment mapping.
Out: a :class:`Decision`.
Does not know: where the account came from; it opens, imports and creates nothing.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from enum import StrEnum
from urllib.parse import urlsplit

import msgspec

from trimaran._account import Account, CredentialsError

__all__ = [
    "Decision",
    "Tier",
    "loopback_host",
    "opted_out",
    "resolve",
    "switch_name",
    "url_problem",
]

_YES = frozenset({"1", "true", "t", "yes", "y", "on"})


class Tier(StrEnum):
    """How far telemetry goes."""

    AUTHENTICATED = "authenticated"
    """Events go to the account's URL with its Bearer token."""

    ANONYMOUS = "anonymous"
    """Events go to a URL from the environment, with no token and no e-mail."""

    DISABLED = "disabled"
    """Nothing is recorded, started, created or sent."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """Which tier was chosen, why, by which switch, and where events go.

    ``source`` is the name of an environment variable, ``"code"``, ``"account"``
    or ``"default"``; ``url`` is None exactly when the tier is disabled.
    """

    tier: Tier
    reason: str
    source: str
    url: str | None = None
    is_fault: bool = False
    """Whether something is wrong, rather than switched off or not set up."""

    @property
    def enabled(self) -> bool:
        """Whether anything is sent at all."""
        return self.tier is not Tier.DISABLED

    @property
    def is_opt_out(self) -> bool:
        """Whether somebody has switched it off, rather than that it is not set up."""
        switched_off = self.source in {"code", "DO_NOT_TRACK"}
        return switched_off or self.source.endswith("_TELEMETRY_DISABLED")


def switch_name(app: str, switch: str) -> str:
    """The environment variable of an app's switch: ``ALTIMATE_TELEMETRY_URL``."""
    word = "".join(letter if letter.isalnum() else "_" for letter in app)
    return f"{word.upper()}_TELEMETRY_{switch}"


def opted_out(app: str, environ: Mapping[str, str], *, enabled: bool = True) -> Decision | None:
    """The decision of the switches that only ever switch off, or None.

    They are looked at first, so that with one of them set no account is asked.
    """
    if not enabled:
        return _disabled("switched off in code", "code")
    for name in ("DO_NOT_TRACK", switch_name(app, "DISABLED")):
        if environ.get(name, "").strip().lower() in _YES:
            return _disabled(f"switched off by {name}", name)
    return None


def resolve(
    app: str,
    account: Account | Exception | None,
    environ: Mapping[str, str],
    *,
    enabled: bool = True,
) -> Decision:
    """Decide the tier; pure, and nothing is opened, imported or created.

    Precedence: off in code, ``DO_NOT_TRACK``, ``{APP}_TELEMETRY_DISABLED``, an
    account with a token, ``{APP}_TELEMETRY_URL``, disabled. No value of any switch
    forces telemetry on. It fails closed: an account that could not be looked up,
    or a bad URL, means disabled with that reason, never the next tier.

    Args:
        app: the host's name; its switches are named after it in capitals.
        account: an account that has a token; the exception that looking it up
            raised; or None where there is no account or it has no token.
        environ: the environment to read.
        enabled: False is the switch in code.
    """
    if (switched_off := opted_out(app, environ, enabled=enabled)) is not None:
        return switched_off
    if isinstance(account, Exception):
        return _faulty(f"the account could not be looked up: {_blame(account)}", "account")
    if account is not None:
        if not _is_account(account):
            return _faulty(f"the account is a {type(account).__name__}, not an Account", "account")
        if problem := url_problem(account.url, with_token=True):
            return _faulty(f"the account's URL {problem}", "account")
        return Decision(
            tier=Tier.AUTHENTICATED,
            reason="an account with a token",
            source="account",
            url=account.url,
        )
    name = switch_name(app, "URL")
    url = environ.get(name, "").strip()
    if not url:
        return _disabled(f"no account with a token, and {name} is not set", "default")
    if problem := url_problem(url, with_token=False):
        return _faulty(f"the URL in {name} {problem}", name)
    return Decision(
        tier=Tier.ANONYMOUS, reason=f"no account with a token; {name} is set", source=name, url=url
    )


def url_problem(url: object, *, with_token: bool) -> str | None:
    """What is wrong with an endpoint's URL, as the end of a sentence, or None.

    The URL itself is not quoted: it may carry a secret.
    """
    if not isinstance(url, str):
        return f"is a {type(url).__name__}, not text"
    if not url.isascii() or not url.isprintable() or " " in url:
        return "has characters that a URL cannot have"
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - reading it is what validates it
    except ValueError:
        return "is not a URL"
    if parts.scheme not in {"http", "https"}:
        return "does not start with http:// or https://"
    if not parts.hostname:
        return "names no host"
    if parts.username is not None or parts.password is not None:
        return "carries a user name or password, which is not sent"
    if "?" in url or "#" in url:  # also an empty query, which would swallow the path
        return "has a query or a fragment, which an endpoint's URL cannot have"
    if with_token and parts.scheme == "http" and loopback_host(url) is None:
        return "is plain http to another machine, where a token must not go; use https"
    return None


def loopback_host(url: str) -> str | None:
    """The host of *url*, where that is this very machine; None for any other."""
    host = urlsplit(url).hostname
    if host is None or host == "localhost":
        return host
    try:
        return host if ipaddress.ip_address(host).is_loopback else None
    except ValueError:
        return None


def _is_account(value: object) -> bool:
    """A provider is the host's own code, and may give anything."""
    return isinstance(value, Account)


def _blame(error: Exception) -> str:
    """The kind of an error; the text of a foreign one may carry a secret."""
    return str(error) if isinstance(error, CredentialsError) else type(error).__name__


def _disabled(reason: str, source: str) -> Decision:
    return Decision(tier=Tier.DISABLED, reason=reason, source=source)


def _faulty(reason: str, source: str) -> Decision:
    return Decision(tier=Tier.DISABLED, reason=reason, source=source, is_fault=True)
