"""What a test of a destination has to know of it.

In: a system of ``--to``, or the endpoint that was decided on. Out: a :class:`Target`.
Does not know: how it is tested, what answers mean.

What is posted in a test has nothing of a session in it: OTLP allows a request without spans,
and the origin's wire a batch without events.
"""

from __future__ import annotations

import msgspec

from trimaran._decision import Decision, Tier
from trimaran._pipeline.wire import INGEST_PATH, Context, body, endpoint_url
from trimaran._transport import Request
from trimaran._version import __version__
from trimaran.cli._system import SYSTEM_TRUST, System
from trimaran.otlp import OtlpTransport

__all__ = ["Target", "of_endpoint", "of_system"]

_EMPTY = body(Context(session_id="trimaran-status"), [], timestamp=0)
"""A batch without events."""

_ACCOUNT = "the file that --credentials names"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What is posted in a test, and what a person can change. ``repr`` shows no header."""

    name: str
    """As a person calls it."""
    request: Request
    path: str
    """What its URL ends with."""
    address: str
    """What says where it is: an option, a variable, an account."""
    credential: str
    """What holds what it knows us by."""
    has_credential: bool
    trust: str
    """The variables that name files with the certificates of who may vouch for it."""
    may_refuse_nothing: bool = False
    """Whether who takes events may refuse a batch that has none."""
    certificate: str | None = None
    """As in ``OtlpSettings``, and so for the next two."""
    client_certificate: str | None = None
    client_key: str | None = None

    @property
    def url(self) -> str:
        """What is posted to, whole."""
        return self.request.url


def of_system(system: System) -> Target:
    """What to test of a system of ``--to``."""
    settings = system.settings
    is_json = settings.encoding == "json"
    headers = {
        **{name.lower(): value for name, value in settings.headers.items()},
        "content-type": "application/json" if is_json else "application/x-protobuf",
        "user-agent": f"trimaran/{__version__}",
    }
    without_spans = OtlpTransport(settings).encoded(Request(settings.url, {}, _EMPTY))
    return Target(
        name=system.name,
        request=Request(settings.url, headers, without_spans),
        path="/v1/traces",
        address=system.address,
        credential=system.credential,
        has_credential=bool(settings.headers),
        trust=system.trust,
        certificate=settings.certificate,
        client_certificate=settings.client_certificate,
        client_key=settings.client_key,
    )


def of_endpoint(decision: Decision, token: str | None) -> Target:
    """What to test of the endpoint that *decision* leads to.

    Args:
        decision: one that is enabled.
        token: the account's; None where there is none.
    """
    assert decision.url is not None
    headers = {"content-type": "application/json", "user-agent": f"trimaran/{__version__}"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    is_account = decision.tier is Tier.AUTHENTICATED
    return Target(
        name="the endpoint",
        request=Request(endpoint_url(decision.url), headers, _EMPTY),
        path=INGEST_PATH,
        address=_ACCOUNT if is_account else decision.source,
        credential=_ACCOUNT,
        has_credential=token is not None,
        trust=SYSTEM_TRUST,
        may_refuse_nothing=True,
    )
