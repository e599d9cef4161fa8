"""The events that the benchmark records: what a coding agent says, in its proportions.

In: how many. Out: typed events, the same in every process.
Does not know: sessions, how anything is measured.
"""

from __future__ import annotations

from random import Random

import msgspec

from trimaran import BridgeCall, Command, Event, Generation, Tokens, ToolCall

__all__ = ["mix"]

_TOOLS = ("bash", "read", "grep", "edit", "write", "glob", "mcp__github__search_issues")
_FAILURE = "FileNotFoundError: [Errno 2] No such file or directory: 'src/app/models.py'"


def mix(count: int, *, seed: int = 1) -> list[Event]:
    """*count* events, complete as the measuring blocks make them.

    A message is a generation and the one to eight tool calls that it asked for, three
    in a hundred of them failed; now and then a bridge call or a command. Message ids
    are new for every message, durations and tokens differ, as they do in an agent: a
    cache that only helps when the same event comes again gains nothing here. Urgent
    events, which would cut batches short, are left out: the floor has full batches.
    """
    random = Random(seed)  # noqa: S311 - the same numbers in every process
    events: list[Event] = []
    calls = 0
    previous: str | None = None
    while len(events) < count:
        message_id = f"msg_{random.getrandbits(80):020x}"
        events.append(_generation(message_id, random))
        for _ in range(random.randint(1, 8)):
            tool = random.choice(_TOOLS)
            events.append(_tool_call(tool, message_id, calls, previous, random))
            calls, previous = calls + 1, tool
        if random.random() < 0.2:
            events.append(BridgeCall(method="sql.execute", duration_ms=random.randint(1, 900)))
        if random.random() < 0.05:
            events.append(
                Command(command_name="review", command_source="command", message_id=message_id)
            )
    return events[:count]


def _generation(message_id: str, random: Random) -> Generation:
    return Generation(
        message_id=message_id,
        model_id="large-model-4-5",
        provider_id="provider",
        agent="build",
        finish_reason=random.choice(("stop", "tool_use")),
        tokens=Tokens(
            input=random.randint(100, 9_000),
            output=random.randint(10, 3_000),
            cache_read=random.randint(0, 150_000),
            cache_write=random.randint(0, 9_000),
        ),
        cost=round(random.uniform(0.0001, 0.4), 6),
        duration_ms=random.randint(400, 60_000),
    )


def _tool_call(
    tool: str, message_id: str, index: int, previous: str | None, random: Random
) -> ToolCall:
    is_mcp = tool.startswith("mcp__")
    failed = random.random() < 0.03
    return ToolCall(
        message_id=message_id,
        tool_name=tool,
        tool_type="mcp" if is_mcp else "standard",
        tool_category="mcp" if is_mcp else "standard",
        status="error" if failed else "success",
        duration_ms=random.randint(1, 30_000),
        sequence_index=index,
        previous_tool=previous,
        error=_FAILURE if failed else msgspec.UNSET,
    )
