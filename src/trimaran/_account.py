"""Who the events belong to: the account protocol and the two shipped providers.

In: a URL, an e-mail address and a token, given or read from a file.
Out: an :class:`Account` and, apart from it, the token of the moment.
Does not know: tiers, the network. A token is in no ``repr`` and no message.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from trimaran._aside import aside

__all__ = ["Account", "AccountProvider", "CredentialsError", "CredentialsFile", "StaticAccount"]

_MAX_CREDENTIALS = 64 * 1024
"""Bytes of a credentials file at most; a real one has a few hundred."""


class Account(msgspec.Struct, frozen=True):
    """An account that events are sent for: the endpoint's base URL, and an e-mail
    address that goes out as ``user_email`` ("" leaves it empty).

    By the address accounts at one URL are told apart. What is on disk for one that has none
    waits for the very token that its process began with, since any other may be somebody
    else's.
    """

    url: str
    email: str = ""


@runtime_checkable
class AccountProvider(Protocol):
    """Where an account comes from; hosts write their own around their login.

    Both methods may wait and may raise. When telemetry opens, both are asked, and an
    error, or ``Settings.account_timeout`` seconds without an answer, means disabled.
    Later an error of :meth:`token`, or ``Settings.request_timeout`` seconds without
    an answer, means no token for now.
    """

    async def account(self) -> Account | None:
        """The account, or None when nobody is logged in."""
        ...

    async def token(self, *, refresh: bool) -> str | None:
        """The token of the moment, or None.

        *refresh* is True after the endpoint refused the last one with a 401: get
        a new one then, rather than the one that is kept. It is called by one task
        at a time, however many sessions there are.
        """
        ...


class StaticAccount:
    """An account that never changes: one URL, one token."""

    def __init__(self, url: str, token: str, *, email: str = "") -> None:
        self._account = Account(url, email)
        self._token = token

    def __repr__(self) -> str:
        return f"StaticAccount(url={self._account.url!r})"

    async def account(self) -> Account | None:
        """The account as given. Does not wait: there is nothing to wait for."""
        return self._account

    async def token(self, *, refresh: bool) -> str | None:  # noqa: ARG002 - there is no other
        """The token as given, refreshed or not. Does not wait."""
        return self._token


class CredentialsError(Exception):
    """A credentials file cannot be used; the message says which, why and what to do."""


class _Credentials(msgspec.Struct):
    url: str
    token: str
    email: str = ""


class CredentialsFile:
    """An account from a JSON file ``{"url": ..., "token": ..., "email": ...}``.

    A file that does not exist means that nobody is logged in. The file is read
    again for every refresh, since the program that logs in renews it there.

    Raises (from both methods):
        CredentialsError: the file is open to others (on POSIX it must be 0600 and
            the user's own), cannot be read, or is not such a JSON object.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def __repr__(self) -> str:
        return f"CredentialsFile({str(self._path)!r})"

    async def account(self) -> Account | None:
        """The file's URL and e-mail address, or None where there is no file."""
        found = await self._in_thread()
        return None if found is None else Account(found.url, found.email)

    async def token(self, *, refresh: bool) -> str | None:  # noqa: ARG002 - always read anew
        """The file's token as it is now, or None where there is no file."""
        found = await self._in_thread()
        return None if found is None else found.token

    async def _in_thread(self) -> _Credentials | None:
        """Read the file. A cancel leaves a read that hangs, on a network drive say, behind."""
        return await aside(self._read)

    def _read(self) -> _Credentials | None:
        try:
            with self._path.open("rb") as file:
                self._check_mode(os.fstat(file.fileno()))
                content = file.read(_MAX_CREDENTIALS + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CredentialsError(f"{self._path}: cannot be read ({error.strerror})") from None
        if len(content) > _MAX_CREDENTIALS:
            raise CredentialsError(f"{self._path}: is larger than {_MAX_CREDENTIALS} bytes")
        try:
            return msgspec.json.decode(content, type=_Credentials)
        except msgspec.ValidationError as error:
            raise CredentialsError(f"{self._path}: {error}") from None
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise CredentialsError(f"{self._path}: is not JSON") from None

    def _check_mode(self, status: os.stat_result) -> None:
        """A token that others can read is not used, so that it is noticed."""
        if os.name != "posix":
            return
        if status.st_uid != os.geteuid():
            raise CredentialsError(f"{self._path}: belongs to another user")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise CredentialsError(f"{self._path}: others can read it; run: chmod 600 {self._path}")
