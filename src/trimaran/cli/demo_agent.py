"""An agent that reviews source files: an example of what an agent says of itself.

In: a telemetry, a task. Out: a review; and, as it goes, the events of one session, with those
of the processes that do a part of the work.
Does not know: receivers, batches, tables.

All of it is real but the model. Where others would ask one, a scripted planner answers; it
is named as such, and its tokens are counted from the text that it was given.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import trio

import trimaran
from trimaran.cli.demo_report import Assignment, Report
from trimaran.cli.demo_tools import FAILURES, Call, Tools, open_tools

__all__ = ["Answer", "Message", "Progress", "ScriptedPlanner", "prune", "work"]

CONTEXT_LIMIT = 20_000
"""Tokens of a conversation at most; beyond it the oldest outputs of tools are taken out."""


SLOW = r"TODO|FIXME|^Seen so far:( ?\w+)+;"
"""A pattern that tries each way to cut a line into words, of which there are more than it could
try in a year: everybody writes one some day."""

DRAFT = "Seen so far: modules of this project with what is worth a word about each of them\n"


@dataclass(frozen=True)
class Message:
    """A part of the conversation."""

    text: str
    is_output: bool = False
    """Whether a tool said it."""

    @cached_property
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


class Progress:
    """How far an agent is with *assignment*, for whoever watches."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.session: trimaran.Session | None = None
        self.parent_session_id: str = ""
        self.tools: Tools | None = None
        self.doing = "starts"
        self.is_done: bool = False
        self.leaving: float | None = None
        """Seconds that it took to leave the telemetry."""
        self.tool_calls: int = 0
        self.failures: int = 0

    def report(self) -> Report:
        """The same at this moment, to be kept."""
        return Report(
            agent=self.assignment.agent,
            session_id="" if self.session is None else self.session.id,
            parent_session_id=self.parent_session_id,
            doing=self.doing,
            is_done=self.is_done,
            tool_calls=self.tool_calls,
            failures=self.failures,
            statistics=(
                trimaran.Statistics() if self.session is None else self.session.statistics()
            ),
            helpers=() if self.tools is None else self.tools.helpers,
            leaving=self.leaving,
        )


async def work(
    telemetry: trimaran.Telemetry, progress: Progress, pass_on: Callable[[bytes], None]
) -> None:
    """Do what was assigned, in a session of its own; *pass_on* gets what sub-agents report.

    If the process was started by an agent, this is a sub-agent of it.
    """
    task = progress.assignment
    planner = ScriptedPlanner(task)
    async with (
        trimaran.attach() as parent,
        telemetry.session(
            project_id=task.project,
            agent=task.agent,
            model_id=planner.model_id,
            provider_id=planner.provider_id,
            parent_session_id=parent.id,
        ) as session,
        open_tools(task, session.to_env, pass_on) as tools,
    ):
        progress.session, progress.parent_session_id, progress.tools = session, parent.id, tools
        session.command(task.agent, source="command", message_id="msg_0")
        conversation = [Message(f"/{task.agent} {task.project}")]

        turns = itertools.count()
        while True:
            message_id = f"msg_{next(turns)}"
            with session.generation(message_id=message_id) as generation:
                answer = await planner.answer(conversation)
                generation.finish(answer.finish_reason, tokens=answer.tokens, cost=answer.cost)
            conversation.append(Message(answer.text))
            if answer.call is None:
                break
            output = await use(answer.call, tools, session, progress, message_id)
            conversation.append(Message(output, is_output=True))
            if pruned := prune(conversation, CONTEXT_LIMIT):
                session.track(pruned)


async def use(
    call: Call, tools: Tools, session: trimaran.Session, progress: Progress, message_id: str
) -> str:
    """Use a tool; what comes of it is for the model to read, a failure too."""
    progress.doing = " ".join((call.tool, *call.arguments[:1]))
    progress.tool_calls += 1
    category = tools.categories[call.tool]
    try:
        with session.tool_call(call.tool, message_id=message_id, category=category):
            return await tools.use(call)
    except FAILURES as error:
        progress.failures += 1
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
        task: what the agent is to do.
    """

    model_id = "scripted-planner"
    provider_id = "trimaran-demo"

    def __init__(self, task: Assignment) -> None:
        self._plan = plan_of_writer() if task.agent == "writer" else plan_of_reviewer(task)
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


def plan_of_reviewer(task: Assignment) -> Generator[Call, str | None, None]:
    """The calls of a review, in order; each is answered with what came of it."""
    yield Call("list")
    yield Call("read", ("REVIEW.md",))  # most projects have none, which is the first failure
    for file in task.files:
        yield Call("read", (file,))
        outline = yield Call("parse", (file,))
        verdict = yield Call("compile", (file,))
        yield Call("mcp__notes__save", (file, f"{outline}; {verdict}"))
    if task.is_careless:
        yield Call("write", ("draft.md", DRAFT))
        yield Call("search", (SLOW, "draft.md"))  # a failure too: it has to be killed
    yield Call("search", ("TODO|FIXME",))
    yield Call("task", ("write a review",))
    yield Call("read", ("REVIEW.md",))


def plan_of_writer() -> Generator[Call, str | None, None]:
    """The calls of a sub-agent that makes a text of the reviewer's notes."""
    notes = yield Call("mcp__notes__list")
    yield Call("write", ("draft.py", "def summary(:\n    ...\n"))
    yield Call("compile", ("draft.py",))  # does not: a slip of the planner
    yield Call("write", ("draft.py", "def summary():\n    ...\n"))
    yield Call("compile", ("draft.py",))
    yield Call("write", ("REVIEW.md", f"# Review\n\n{notes}\n"))


def price(tokens: trimaran.Tokens) -> float:
    """What a model would take, in dollars; the planner itself works for nothing."""
    return (3.0 * tokens.input + 0.3 * tokens.cache_read + 15.0 * tokens.output) / 1e6
