"""What crosses a process boundary: a place for sockets, frames, and channels made of them.

Knows nothing of events, sessions and batches: it carries bytes.
"""

from __future__ import annotations

from trimaran._process.channel import (
    ProcessChannelStatistics,
    ProcessReceiveChannel,
    ProcessSendChannel,
)
from trimaran._process.end import PeerClosed
from trimaran._process.frames import MAX_ANSWER, MAX_FRAME
from trimaran._process.place import (
    ProcessError,
    ProcessListener,
    connect,
    listening,
    peer_uid,
    socket_directory,
)

__all__ = [
    "MAX_ANSWER",
    "MAX_FRAME",
    "PeerClosed",
    "ProcessChannelStatistics",
    "ProcessError",
    "ProcessListener",
    "ProcessReceiveChannel",
    "ProcessSendChannel",
    "connect",
    "listening",
    "peer_uid",
    "socket_directory",
]
