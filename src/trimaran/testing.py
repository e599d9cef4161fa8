"""What programs that use Trimaran need in their own tests; nothing here touches a network.

In: the code under test, given a telemetry or a transport. Out: what it would have sent,
as typed events.
Does not know: pytest; the fixture ``trimaran_capture`` is made of this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar, overload

import msgspec
import trio

from trimaran._account import AccountProvider
from trimaran._decision import switch_name
from trimaran._events import BUILT_IN_EVENTS, Event, read_back
from trimaran._settings import Settings
from trimaran._telemetry import Telemetry, open_telemetry
from trimaran._transport import Answer, Request, TransportError

__all__ = ["Capture", "CapturedBatch", "ScriptedTransport"]

_Event = TypeVar("_Event", bound=Event)

_OK = Answer(200)
_CAPTURE_URL = "https://capture.invalid"
"""Where a capture says that it delivers; the name cannot exist (RFC 2606)."""


class CapturedBatch(msgspec.Struct, frozen=True):
    """One request of a session, read back."""

    session_id: str
    cli_version: str
    user_email: str
    project_id: str
    timestamp: int
    events: list[Event]


class ScriptedTransport:
    """A transport that follows a script, and keeps the requests.

    Each step is an answer to give, an error to raise, or seconds to hang before the
    next step; after the last one every request is answered with 200.

    Args:
        script: the steps, in order.
    """

    def __init__(self, script: Iterable[Answer | TransportError | float] = ()) -> None:
        self._script = iter(script)
        self.requests: list[Request] = []
        """Every request made, in order."""
        self.taken: list[Request] = []
        """The requests that were answered with success."""

    async def attempt(self, request: Request) -> Answer:
        """Follow the script. A checkpoint."""
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        for step in self._script:
            if isinstance(step, TransportError):
                raise step
            if isinstance(step, Answer):
                return self._answered(request, step)
            await trio.sleep(step)
        return self._answered(request, _OK)

    def _answered(self, request: Request, answer: Answer) -> Answer:
        if 200 <= answer.status < 300:
            self.taken.append(request)
        return answer

    async def aclose(self) -> None:
        """Nothing is open. A checkpoint."""
        await trio.lowlevel.checkpoint()


class Capture(ScriptedTransport):
    """Telemetry that ends in memory, read back as typed events.

    Give its :meth:`open` in place of :func:`trimaran.open_telemetry`, or pass the
    capture itself as ``transport=``. A batch counts when it was answered with success,
    that is after a flush, or after the telemetry was left.
    """

    def __repr__(self) -> str:
        return f"<Capture: {len(self.events())} events>"

    def open(
        self,
        app: str = "test",
        *,
        version: str = "",
        account: AccountProvider | None = None,
        settings: Settings | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> AbstractAsyncContextManager[Telemetry]:
        """A telemetry that ends here; strict, so that a bug in it comes out.

        Args:
            app: as for :func:`trimaran.open_telemetry`, and so for the others.
            version: the host's version.
            account: who is logged in; None is anonymous.
            settings: the limits; made strict.
            environ: the switches; None switches on, whatever the real environment says.
        """
        chosen = Settings() if settings is None else settings
        return open_telemetry(
            app,
            version=version,
            account=account,
            settings=msgspec.structs.replace(chosen, strict=True),
            environ={switch_name(app, "URL"): _CAPTURE_URL} if environ is None else environ,
            transport=self,
        )

    def batches(self) -> list[CapturedBatch]:
        """What was delivered, batch by batch; whole, also where a 207 refused a part of it.

        A repeated key counts once.
        """
        return self._read_back(Event)

    def _read_back(self, asked_for: type[Event]) -> list[CapturedBatch]:
        # Where several classes have one name on the wire, the wire's own comes before a
        # host's, and the one that is asked for before both.
        kinds: dict[str, type[Event]] = {
            _wire_name(Event): Event,
            **_kinds_below(Event),
            **BUILT_IN_EVENTS,
        }
        if asked_for is not Event:
            kinds |= {**_kinds_below(asked_for), _wire_name(asked_for): asked_for}
        bodies: dict[str, bytes] = {}
        for request in self.taken:
            bodies.setdefault(request.headers.get("idempotency-key", ""), request.body)
        return [_read(body, kinds) for body in bodies.values()]

    @overload
    def events(self) -> list[Event]: ...

    @overload
    def events(self, kind: type[_Event]) -> list[_Event]: ...

    def events(self, kind: type[Event] = Event) -> list[Any]:
        """What was delivered, of one class of events or of all, in order of delivery."""
        return [
            event
            for batch in self._read_back(kind)
            for event in batch.events
            if isinstance(event, kind)
        ]

    def sessions(self) -> dict[str, list[Event]]:
        """What was delivered, by session id."""
        sessions: dict[str, list[Event]] = {}
        for batch in self.batches():
            sessions.setdefault(batch.session_id, []).extend(batch.events)
        return sessions


def _read(body: bytes, kinds: Mapping[str, type[Event]]) -> CapturedBatch:
    envelope: dict[str, Any] = msgspec.json.decode(body)
    envelope["events"] = [read_back(event, kinds[event["type"]]) for event in envelope["events"]]
    return CapturedBatch(**envelope)


def _wire_name(kind: type[Event]) -> str:
    """``type`` on the wire; a class that is declared to have none is called as it is."""
    tag = kind.__struct_config__.tag
    return kind.__name__ if tag is None else str(tag)


def _kinds_below(base: type[Event]) -> dict[str, type[Event]]:
    """Every class of events that exists below *base*, by its name on the wire.

    One that somebody declared comes after those that were made of what came in, whose base is
    older, and so takes the name.
    """
    kinds: dict[str, type[Event]] = {}
    for kind in base.__subclasses__():
        kinds[_wire_name(kind)] = kind
        kinds.update(_kinds_below(kind))
    return kinds
