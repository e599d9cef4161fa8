"""What sessions are made of: what one says of itself, and what all of a telemetry share.

In: the parts, each from its own file. Out: three frozen values.
Does not know: how the parts are made, what a session does with them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

import msgspec

from trimaran._decision import Tier
from trimaran._destination import ENDPOINT
from trimaran._diagnostics import Diagnostics
from trimaran._endpoint import WayOut
from trimaran._endpoint.consent import Consent
from trimaran._endpoint.outages import Outages
from trimaran._environment import PROTOCOL, Parent
from trimaran._hooks import Hooks
from trimaran._pipeline.memory import MemoryBudget
from trimaran._settings import Settings
from trimaran._spool.keeper import SpoolKeeper
from trimaran._transport import Request

__all__ = ["Route", "SessionContext", "Shared"]


class SessionContext(msgspec.Struct, frozen=True, kw_only=True):
    """What a session says of itself and, where they say nothing else, of its events."""

    session_id: str
    parent_session_id: str = ""
    """The session that it works for as a sub-agent; "" for none."""
    project_id: str = ""
    agent: str = ""
    model_id: str = ""
    provider_id: str = ""
    traceparent: str = ""
    """What its root stands below, as W3C Trace Context writes it; "" for nothing."""
    span_id: str = ""
    """What this process's part of it stands below, 16 hexadecimal digits; "" for the root."""


class Route(msgspec.Struct, frozen=True, kw_only=True):
    """What the sessions of one telemetry share on the way to one destination."""

    name: str
    """Of the destination."""
    endpoint: WayOut
    consent: Consent
    """Whether anything may go there."""
    outages: Outages
    diagnostics: Diagnostics
    budget: MemoryBudget
    """The bytes of what is on this way."""
    wants_spans: bool
    """Whether events are to say there which spans they are."""
    keeper: SpoolKeeper | None
    """The spool, if there is one."""
    ahead: Callable[[Sequence[Request]], Awaitable[bool]] | None
    """Hands several requests over at once, where there is somebody to take them."""
    beside: Callable[[], Awaitable[object]] | None
    """What runs beside the sessions, until the last one is over."""
    flush_interval: Callable[[], float] | None = None
    """Seconds that an event waits for others, as it is now; None is as the settings say."""


class Shared(msgspec.Struct, frozen=True, kw_only=True):
    """What the sessions of one telemetry have in common; none of it is a session's own."""

    routes: tuple[Route, ...]
    """The ways to the destinations; there is at least one."""
    settings: Settings
    budget: MemoryBudget
    """The bytes of what sessions hold in their mailboxes."""
    diagnostics: Diagnostics
    hooks: Hooks
    app: str
    """The host's name."""
    version: str
    """The host's."""
    tier: Tier
    """Of what is recorded: without an endpoint it is anonymous."""
    names_destinations: bool
    """Whether the host has named some, and so is told of each by its name."""
    environ: Mapping[str, str]
    has_own_transport: bool
    """Whether the host brought what sends."""
    has_own_consent: bool
    """Whether it can switch off in the middle, by a function of its own."""
    is_withdrawn: Callable[[], bool]
    """Whether nothing may be sent any more, to whomever; from any thread."""
    traceparent: str
    """What the roots of its sessions stand below, unless a session says otherwise; "" for
    nothing."""
    parent: Parent | None
    """The process whose session this one takes part in, if it is not its own."""
    user_email: str
    """"" for anonymous events."""
    home: str | None
    """The user's home directory, to be masked."""
    random: Random
    """Where jitter comes from."""
    wall_clock: Callable[[], float]
    """Seconds since the epoch."""
    new_id: Callable[[], str]
    """Gives a text that is unique over all of them, for all time."""

    @property
    def wants_spans(self) -> bool:
        """Whether some destination wants to know which spans events are."""
        return any(route.wants_spans for route in self.routes)

    def as_parent(
        self,
        context: SessionContext,
        *,
        pid: int,
        socket: str | None,
        is_over: bool,
        span_id: str,
    ) -> Parent:
        """What a child of a session is told.

        Args:
            context: the session's.
            pid: of the process whose session it is.
            socket: where it takes children; None where it cannot.
            is_over: whether it has ended.
            span_id: what the child stands below; "" for the session's root.
        """
        return Parent(
            protocol=PROTOCOL,
            tier=self.tier,
            app=self.app,
            session_id=context.session_id,
            pid=pid,
            socket=socket,
            is_over=is_over,
            calls_last=True,
            url=self._anonymous_url(),
            has_own_transport=self.has_own_transport,
            has_own_consent=self.has_own_consent,
            version=self.version,
            project_id=context.project_id,
            agent=context.agent,
            model_id=context.model_id,
            provider_id=context.provider_id,
            parent_session_id=context.parent_session_id,
            wants_spans=self.wants_spans,
            traceparent=context.traceparent,
            span_id=span_id,
        )

    def _anonymous_url(self) -> str | None:
        """Where events may go without an account, if that was decided on."""
        first = self.routes[0]
        is_open = self.tier is Tier.ANONYMOUS and first.name == ENDPOINT
        return first.endpoint.url if is_open else None
