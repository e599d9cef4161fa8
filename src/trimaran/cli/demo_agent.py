"""An agent that reviews source files: an example of what an agent says of itself.

In: a telemetry, a task, tools. Out: a review; and, as it goes, the events of one session.
Does not know: receivers, batches, tables.

All of it is real but the model. Where others would ask one, a scripted planner answers; it
is named as such, and its tokens are counted from the text that it was given.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Generator, Sequence
from typing import NamedTuple

import trio

import trimaran
from trimaran.cli.demo_tools import FAILURES, Call, Tools

__all__ = ["Answer", "Message", "Review", "ScriptedPlanner", "prune", "review"]

CONTEXT_LIMIT = 20_000
"""Tokens of a conversation at most; beyond it the oldest outputs of tools are taken out."""


class Message(NamedTuple):
    """A part of the conversation."""

    text: str
    is_output: bool = False
    """Whether a tool said it."""

    @property
    def tokens(self) -> int:
        """Words and signs, which is what a tokenizer comes to, more or less."""
        return len(re.findall(r"\w+|[^\w\s]", self.text))


class Answer(NamedTuple):
    """What a model gives: a text, and the tool that it wants used, if any."""

    text: str
    call: Call | None
    finish_reason: str
    tokens: trimaran.Tokens
    cost: float


class Review:
    """A task, and how far it is, for whoever watches.

    Args:
        project: what the files belong to.
        files: those to review, relative to its root.
    """

    def __init__(self, project: str, files: Sequence[str]) -> None:
        self.project = project
        self.files = files
        self.session: trimaran.Session | None = None
        self.doing = "waits"
        self.is_done: bool = False
        self.tool_calls: int = 0
        self.failures: int = 0
        self.tokens: int = 0
        self.cost: float = 0.0


async def review(telemetry: trimaran.Telemetry, task: Review, tools: Tools) -> None:
    """Review the files of *task*, in a session of its own."""
    planner = ScriptedPlanner(task.files)
    async with telemetry.session(
        project_id=task.project,
        agent="reviewer",
        model_id=planner.model_id,
        provider_id=planner.provider_id,
    ) as session:
        task.session = session
        session.command("review", source="command", message_id="msg_0")
        conversation = [Message(f"/review {task.project}")]

        turns = itertools.count()
        while True:
            message_id = f"msg_{next(turns)}"
            with session.generation(message_id=message_id) as generation:
                answer = await planner.answer(conversation)
                generation.finish(answer.finish_reason, tokens=answer.tokens, cost=answer.cost)
            task.tokens += answer.tokens.total
            task.cost += answer.cost
            conversation.append(Message(answer.text))
            if answer.call is None:
                break
            output = await use(answer.call, tools, session, task, message_id)
            conversation.append(Message(output, is_output=True))
            if pruned := prune(conversation, CONTEXT_LIMIT):
                session.track(pruned)

        session.command("notes", source="mcp", message_id=message_id)
        await use(Call("mcp__notes__count"), tools, session, task, message_id)
    task.doing, task.is_done = "done", True


async def use(
    call: Call, tools: Tools, session: trimaran.Session, task: Review, message_id: str
) -> str:
    """Use a tool; what comes of it is for the model to read, a failure too."""
    task.doing = " ".join((call.tool, *call.arguments[:1]))
    task.tool_calls += 1
    category = tools.categories[call.tool]
    try:
        with session.tool_call(call.tool, message_id=message_id, category=category):
            return await tools.use(call)
    except FAILURES as error:
        task.failures += 1
        session.error(error, context=call.tool)
        return f"{call.tool} failed: {error}"


def prune(conversation: list[Message], limit: int) -> trimaran.ToolOutputsPruned | None:
    """Take the oldest outputs out of a *conversation* of more than *limit* tokens.

    It is left with half of that, so that it does not have to be done each time.
    """
    excess = sum(message.tokens for message in conversation) - limit
    if excess <= 0:
        return None
    excess += limit // 2
    count = tokens = 0
    for index, message in enumerate(conversation):
        if message.is_output and tokens < excess:
            conversation[index] = Message("(taken out)")
            count += 1
            tokens += message.tokens
    return trimaran.ToolOutputsPruned(count=count, tokens_pruned=tokens)


class ScriptedPlanner:
    """In the place of a model: it knows beforehand what it will want.

    Args:
        files: those to review.
    """

    model_id = "scripted-planner"
    provider_id = "trimaran-demo"

    def __init__(self, files: Sequence[str]) -> None:
        self._plan = plan(files)
        self._known: list[Message] = []

    async def answer(self, conversation: Sequence[Message]) -> Answer:
        """What to do next, with the tokens that a model would count. A checkpoint."""
        await trio.lowlevel.checkpoint()
        last = conversation[-1]
        try:
            call = self._plan.send(last.text if last.is_output else None)
        except StopIteration:
            call = None
        text = "That is all." if call is None else f"Next: {call.tool}{call.arguments}"
        cached = itertools.takewhile(
            lambda pair: pair[0] == pair[1], zip(conversation, self._known, strict=False)
        )
        cache_read = sum(message.tokens for message, _ in cached)
        tokens = trimaran.Tokens(
            input=sum(message.tokens for message in conversation) - cache_read,
            output=Message(text).tokens,
            cache_read=cache_read,
        )
        self._known = list(conversation)
        reason = "stop" if call is None else "tool_calls"
        return Answer(text, call, reason, tokens, price(tokens))


def plan(files: Sequence[str]) -> Generator[Call, str | None, None]:
    """The calls of a review, in order; each is answered with what came of it."""
    yield Call("list")
    for file in files:
        yield Call("read", (file,))
        outline = yield Call("parse", (file,))
        verdict = yield Call("compile", (file,))
        yield Call("mcp__notes__save", (file, f"{outline}; {verdict}"))
    yield Call("grep", ("TODO|FIXME",))
    yield Call("read", ("REVIEW.md",))  # most projects have none, which is the first failure
    yield Call("write", ("draft.py", "def summary(:\n    ...\n"))
    yield Call("compile", ("draft.py",))  # does not: the second failure, a slip of the planner
    yield Call("write", ("draft.py", "def summary():\n    ...\n"))
    yield Call("compile", ("draft.py",))


def price(tokens: trimaran.Tokens) -> float:
    """What a model would take, in dollars; the planner itself works for nothing."""
    return (3.0 * tokens.input + 0.3 * tokens.cache_read + 15.0 * tokens.output) / 1e6
