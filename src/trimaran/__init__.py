"""Telemetry for AI-agent sessions, native to trio.

The layout follows the data: a session's mailbox, then its three stages in
``_pipeline`` (collector, batcher, sender), then the endpoint and the transport that all
sessions share. ``_live_session`` joins the stages of one session, ``_supervisor`` keeps
those of all sessions alive, ``_telemetry`` opens and closes the whole.
This file holds names, and no logic.
"""

from trimaran._account import (
    Account,
    AccountProvider,
    CredentialsError,
    CredentialsFile,
    StaticAccount,
)
from trimaran._attached import attach
from trimaran._decision import Decision, Tier, resolve
from trimaran._destination import Destination
from trimaran._events import (
    BridgeCall,
    BuiltInEvent,
    Command,
    CompactionTriggered,
    ContextOverflowRecovered,
    ErrorEvent,
    Event,
    Generation,
    SessionEnd,
    SessionStart,
    Tokens,
    ToolCall,
    ToolOutputsPruned,
)
from trimaran._hooks import Dropped, Problem
from trimaran._in_thread import ThreadTelemetry, attach_in_thread, open_in_thread
from trimaran._pipeline.ledger import DropReason, Statistics
from trimaran._recording import BridgeMeasure, GenerationMeasure, ToolMeasure
from trimaran._session import Flushed, Session, current_session
from trimaran._settings import Relay, Settings, Spool
from trimaran._spool.disk import RunBlocking
from trimaran._telemetry import Telemetry, open_telemetry, run_telemetry
from trimaran._thread_session import ThreadSession
from trimaran._transport import Answer, Blueprint, Request, Transport, TransportError
from trimaran._version import __version__

__all__ = [
    "Account",
    "AccountProvider",
    "Answer",
    "Blueprint",
    "BridgeCall",
    "BridgeMeasure",
    "BuiltInEvent",
    "Command",
    "CompactionTriggered",
    "ContextOverflowRecovered",
    "CredentialsError",
    "CredentialsFile",
    "Decision",
    "Destination",
    "DropReason",
    "Dropped",
    "ErrorEvent",
    "Event",
    "Flushed",
    "Generation",
    "GenerationMeasure",
    "Problem",
    "Relay",
    "Request",
    "RunBlocking",
    "Session",
    "SessionEnd",
    "SessionStart",
    "Settings",
    "Spool",
    "StaticAccount",
    "Statistics",
    "Telemetry",
    "ThreadSession",
    "ThreadTelemetry",
    "Tier",
    "Tokens",
    "ToolCall",
    "ToolMeasure",
    "ToolOutputsPruned",
    "Transport",
    "TransportError",
    "__version__",
    "attach",
    "attach_in_thread",
    "current_session",
    "open_in_thread",
    "open_telemetry",
    "resolve",
    "run_telemetry",
]
