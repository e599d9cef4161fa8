"""Who may talk to the receiver: tokens, and the names it answers to.

In: the headers of a request, the tokens and names that are allowed.
Out: yes or no.
Does not know: HTTP answers, routes, the store.
"""

import base64
import hmac
import ipaddress
import re
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from urllib.parse import urlsplit

__all__ = ["TokenFileError", "is_loopback", "knows_token", "names_local_host", "read_token_file"]

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # RFC 6750, 2.1, with "=" anywhere


class TokenFileError(Exception):
    """The token file cannot be used. The message names it, and never shows a token."""


def read_token_file(path: str | PathLike[str]) -> frozenset[str]:
    """The tokens in the file at *path*: one a line, empty lines and ``#`` lines left out.

    Raises:
        TokenFileError: It cannot be read, has no token, or a line is not a token.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TokenFileError(f"{path}: {error}") from error
    tokens: set[str] = set()
    for number, line in enumerate(lines, start=1):
        token = line.strip()
        if not token or token.startswith("#"):
            continue
        if not _TOKEN.fullmatch(token):
            raise TokenFileError(
                f"{path}, line {number}: a token is made of letters, digits and . _ ~ + / = -"
            )
        tokens.add(token)
    if not tokens:
        raise TokenFileError(f"{path}: has no token, which would let nobody in")
    return frozenset(tokens)


def knows_token(authorization: str, tokens: Collection[str], *, basic: bool = False) -> bool:
    """Whether the header *authorization* carries one of *tokens*; yes if there are none.

    With *basic*, the token may also be the password of Basic authentication under any
    user name, which is what a browser asks a person for.
    """
    if not tokens:
        return True
    scheme, _, credentials = authorization.partition(" ")
    match scheme.lower():
        case "bearer":
            presented = credentials.strip().encode()
        case "basic" if basic:
            presented = _password(credentials)
        case _:
            return False
    # Each is compared in constant time and none is left out, so that the time it takes
    # says nothing about how near a guess came.
    return any([hmac.compare_digest(presented, token.encode()) for token in tokens])  # noqa: C419


def is_loopback(address: str) -> bool:
    """Whether the numeric *address* is reached from this machine only."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def names_local_host(host_header: str) -> bool:
    """Whether a ``Host`` header names this machine as only its own programs do.

    A page of the web can make a browser ask a loopback address under the name of its
    own site, once that name has been pointed there, and would then read the answer.
    So on loopback, addresses and ``localhost`` are answered and all other names refused.
    """
    try:
        name = urlsplit(f"//{host_header}").hostname or "localhost"
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _password(credentials: str) -> bytes:
    """The password in the *credentials* of Basic authentication; empty if they are none."""
    try:
        return base64.b64decode(credentials).partition(b":")[2]
    except ValueError:
        return b""
