"""What agents and their relay say to each other, and what is answered.

In: values. Out: bytes, and back. Pure.
Does not know: channels, the disk.

An agent sends a :class:`Hello` and then whatever it likes; each message has an answer of at
most a kilobyte. What the relay wants of an agent it says over a second connection, on which
the agent listens. Which of the two a connection is, its first byte says.

Messages are maps, so that a version may add a field and others go on. Whoever changes what
one means counts :data:`PROTOCOL` up; ``protocol`` of a hello, :class:`Refused` and
:class:`End` mean the same in all of them, so that different versions understand each other
well enough to part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TypeAlias

import msgspec

__all__ = [
    "LISTENS",
    "PROTOCOL",
    "SPEAKS",
    "Answer",
    "Batches",
    "Call",
    "End",
    "HandedBatch",
    "Hello",
    "Listener",
    "Message",
    "MessageError",
    "NewToken",
    "OutletReport",
    "Refusal",
    "Refused",
    "Report",
    "Spectator",
    "Taken",
    "Welcome",
    "Withdraw",
    "answer_from",
    "answer_to",
    "call_from",
    "encoded",
    "message_from",
    "report_from",
    "role_from",
    "should_retire",
]

PROTOCOL = 1

SPEAKS = b"s"
"""The first byte of a connection over which the other end sends messages."""
LISTENS = b"l"
"""The first byte of one over which the relay does."""

_LONGEST_REASON = 300
"""Characters; an answer has to stay within a kilobyte."""


class Refusal(StrEnum):
    """Why a relay does not do what it was asked."""

    PROTOCOL = "protocol"
    """It speaks another one."""
    DISK = "disk"
    """It cannot keep it: the disk is full or broken, or the queue on it has no room."""
    MEANING = "meaning"
    """It does not understand."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag="hello"):
    """An agent's first message. Only its first field has to be there in every version."""

    protocol: int
    version: str = ""
    """The library's, for people."""
    agent: str = ""
    """Unique over all of them, for all time; what is handed over is this one's."""
    destination: str = ""
    """What its batches are bound to: the tier, the URL and the account."""
    token: str | None = None
    """The account's, where there is one."""

    def __repr__(self) -> str:
        return f"Hello(protocol={self.protocol}, agent={self.agent!r})"


class HandedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch, as it is to be sent."""

    key: str
    body: bytes
    events: int
    reports: int = 0
    parent_session_id: str = ""
    traceparent: str = ""


class Batches(msgspec.Struct, frozen=True, kw_only=True, tag="batches"):
    """Take these, all or none; they are answered when they are on disk."""

    batches: Sequence[HandedBatch]


class NewToken(msgspec.Struct, frozen=True, kw_only=True, tag="token"):
    """The account's token is another one by now."""

    token: str

    def __repr__(self) -> str:
        return "NewToken()"


class Withdraw(msgspec.Struct, frozen=True, tag="withdraw"):
    """Consent is gone: nothing that this agent handed over is to be kept, or sent."""


class End(msgspec.Struct, frozen=True, tag="end"):
    """Stop taking anything, let go of everything, and end. Needs no hello."""


Message: TypeAlias = Hello | Batches | NewToken | Withdraw | End


class Welcome(msgspec.Struct, frozen=True, kw_only=True, tag="welcome"):
    """The hello was understood."""

    version: str


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """It is done, and on disk."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """It is not done."""

    why: Refusal
    reason: str
    """For people."""
    protocol: int = PROTOCOL
    """The relay's own."""


Answer: TypeAlias = Welcome | Taken | Refused


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """The relay wants another token than the one that the agent gave last."""

    after: str | None

    def __repr__(self) -> str:
        return "Call()"


class Listener(msgspec.Struct, frozen=True, kw_only=True, tag="listener"):
    """Who listens for calls: the agent that said hello by this name."""

    agent: str


class Spectator(msgspec.Struct, frozen=True, tag="spectator"):
    """Who wants a :class:`Report`."""


class OutletReport(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the batches of one destination."""

    destination: str
    waiting: int
    """Batches."""
    events: int
    """In them."""
    delivered: int
    """Events, since the relay began."""
    dropped: Mapping[str, int]
    waits_for_token: bool


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How a relay is, for people."""

    pid: int
    version: str
    began: float
    """Seconds since the epoch."""
    agents: int
    directory: str
    outlets: Sequence[OutletReport]
    problem: str = ""
    """The last one, in words."""


class MessageError(Exception):
    """Bytes that are no message."""


_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)
_calls = msgspec.msgpack.Decoder(Call)
_roles: msgspec.msgpack.Decoder[Listener | Spectator] = msgspec.msgpack.Decoder(
    Listener | Spectator
)
_reports = msgspec.msgpack.Decoder(Report)


def encoded(value: Message | Answer | Call | Listener | Spectator | Report) -> bytes:
    """The bytes of a message or an answer."""
    return msgspec.msgpack.encode(value)


def message_from(data: bytes) -> Message:
    """What an agent says. Raises :class:`MessageError`."""
    try:
        return _messages.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(str(error)) from None


def answer_from(data: bytes) -> Answer:
    """What the relay answers. Raises :class:`MessageError`."""
    try:
        return _answers.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(str(error)) from None


def call_from(data: bytes) -> Call:
    """What the relay wants. Raises :class:`MessageError`."""
    try:
        return _calls.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(str(error)) from None


def role_from(data: bytes) -> Listener | Spectator:
    """Who listens. Raises :class:`MessageError`."""
    try:
        return _roles.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(str(error)) from None


def report_from(data: bytes) -> Report:
    """How a relay is. Raises :class:`MessageError`."""
    try:
        return _reports.decode(data)
    except msgspec.DecodeError as error:
        raise MessageError(str(error)) from None


def answer_to(hello: Hello, *, version: str, problem: str | None) -> Welcome | Refused:
    """Whether an agent is served.

    Args:
        hello: what it said.
        version: of this library.
        problem: what is wrong with its destination, as the end of a sentence.
    """
    if hello.protocol != PROTOCOL:
        return Refused(
            why=Refusal.PROTOCOL,
            reason=f"it is of version {version}, which speaks protocol {PROTOCOL},"
            f" not {hello.protocol}",
        )
    if problem is not None:
        return Refused(why=Refusal.MEANING, reason=problem[:_LONGEST_REASON])
    return Welcome(version=version)


def should_retire(refused: Refused) -> bool:
    """Whether an agent that was refused so is to ask the relay to end: the newer one stays."""
    return refused.why is Refusal.PROTOCOL and refused.protocol < PROTOCOL
