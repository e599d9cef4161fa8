"""``trimaran spool``: what is on disk, in real files of processes that live and that died."""

from __future__ import annotations

import json
import math
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from patience import PATIENCE
from trimaran._account import Account
from trimaran._decision import resolve
from trimaran._pipeline import wire
from trimaran._spool.browser import SpoolBrowser
from trimaran._spool.file import SpoolFile
from trimaran._spool.values import bound_to, worked_out
from trimaran.cli.spool import age_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from cli.conftest import Command, OnTerminal, Stored
    from conftest import LoopbackEndpoint
    from trimaran.receiver import Receiver

AGENT = """
import os, sys, trio, trimaran
from trimaran.testing import ScriptedTransport

async def main():
    settings = trimaran.Settings(spool=trimaran.Spool(directory=sys.argv[1]), batch_events=10)
    environ = {"MINE_TELEMETRY_URL": sys.argv[2]}
    async with trimaran.open_telemetry(
        "mine", environ=environ, settings=settings, transport=ScriptedTransport([float("inf")])
    ) as telemetry:
        async with telemetry.session(session_id="first") as session:
            for number in range(95):
                session.command(f"command-{number}")
            await session.flush(timeout=0.1)
            while session.statistics().spooled < 96:
                await trio.sleep(0.01)
            os.write(1, b"safe")
            await trio.sleep_forever()

trio.run(main)
"""
"""Has 96 events on disk and none delivered when it says so."""


@pytest.fixture
def spool(tmp_path: Path) -> Generator[Callable[..., SpoolFile]]:
    """Opens queues in ``spool``, each of an owner that lives until it is closed."""
    opened: list[SpoolFile] = []

    def make(owner: str, *, destination: str, created: float | None = None) -> SpoolFile:
        file = SpoolFile(
            tmp_path / "spool",
            owner=owner,
            destination=destination,
            most_bytes=1_000_000,
            most_seconds=math.inf,
            survives="kill",
            wall_clock=time.time if created is None else lambda: created,
        )
        opened.append(file)
        return file

    yield make
    for each in opened:
        each.close()


def batch(session_id: str, *names: str) -> bytes:
    """The body of a batch of commands."""
    commands = [
        json.dumps(
            {"timestamp": 1, "session_id": session_id, "type": "command", "command_name": name}
        ).encode()
        for name in names
    ]
    return wire.body(wire.Context(session_id=session_id), commands, timestamp=1)


def put(file: SpoolFile, key: str, *names: str) -> bytes:
    """Keep a batch of commands."""
    body = batch("ses_1", *names)
    assert file.put(key, body, events=len(names), reports=0) == []
    return body


def leave(make: Callable[..., SpoolFile], owner: str, destination: str, **batches: int) -> None:
    """Be a process that puts batches, of so many commands each, and is gone."""
    file = make(owner, destination=destination)
    for key, count in batches.items():
        put(file, key, *(f"{key}-{number}" for number in range(count)))
    file.close()


def keys(command: Command) -> list[str]:
    """What is on disk."""
    return [row.key for row in SpoolBrowser(command.directory / "spool").rows()]


def make_newer(path: Path) -> None:
    """A file of a version to come."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 99")
    database.close()


async def die(nursery: trio.Nursery, command: Command, url: str) -> None:
    """Run an agent that is killed with 96 events on disk and none delivered."""
    process: trio.Process = await nursery.start(
        partial(
            trio.run_process,
            [sys.executable, "-c", AGENT, "spool", url],
            stdout=subprocess.PIPE,
            check=False,
            cwd=command.directory,
        )
    )
    assert process.stdout is not None
    with trio.fail_after(PATIENCE):
        assert await process.stdout.receive_some() == b"safe"
        process.kill()
        await process.wait()


async def test_nothing_waits(command: Command) -> None:
    """No spool is no failure, and is not made by asking; the place is the app's own."""
    environ = {"XDG_STATE_HOME": str(command.directory / "state")}

    for name in ("list", "clear", "send"):
        ended = await command("spool", name, "--app", "mine", environ=environ)

        assert (ended.status, ended.err) == (0, ""), name
        assert f" in {command.directory}/state/mine/telemetry.\n" in ended.out
    assert list(command.directory.iterdir()) == []


async def test_list(command: Command, spool: Callable[..., SpoolFile]) -> None:
    """Every batch of every process, by destination and in order; and the sum."""
    now = time.time()
    dead = spool("dead", destination="anonymous https://x.test", created=now - 900)
    older = spool("older", destination="anonymous https://y.test", created=now - 7300)
    one = spool("me", destination="authenticated https://x.test me@x.test", created=now - 600)
    other = spool("us", destination="anonymous https://x.test", created=now - 600)
    bodies = [
        put(dead, "k1", "a", "b"),
        put(older, "k2", "a"),
        put(one, "k3", "a"),
        put(other, "k4", "a", "b", "c"),
    ]
    sizes = [len(body) for body in bodies]
    dead.close()
    older.close()

    where = command.directory / "spool"

    ended = await command("spool", "list", "--directory", where)

    rows = [line.split("  ") for line in ended.out.splitlines()]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    titles = ["Batch", "Process", "Age", "Events", "Bytes"]
    assert ended.status == 0
    assert [row for row in cells if row and "─" not in row[0]] == [
        ["anonymous https://x.test"],
        titles,
        ["k1", "is gone", "15 min", "2", str(sizes[0])],
        ["k4", "lives", "10 min", "3", str(sizes[3])],
        ["anonymous https://y.test"],
        titles,
        ["k2", "is gone", "2 h", "1", str(sizes[1])],
        ["authenticated https://x.test me@x.test"],
        titles,
        ["k3", "lives", "10 min", "1", str(sizes[2])],
        [f"All: 4 batches with 7 events, {sum(sizes):,} bytes, the oldest 2 h old, in {where}."],
    ]


async def test_looking_disturbs_nobody(command: Command, spool: Callable[..., SpoolFile]) -> None:
    """Who lives keeps what it has, and goes on; what the dead left is there for the next."""
    leave(spool, "dead", "anonymous https://x.test", k1=1)
    live = spool("live", destination="anonymous https://x.test")
    put(live, "k2", "a")

    for arguments in (["list"], ["show", "k2"]):
        await command("spool", *arguments, "--directory", "spool")
    live.remove(["k2"])
    taken, _ = live.take_over()

    assert [row.key for row in taken] == ["k1"]


async def test_show(command: Command, spool: Callable[..., SpoolFile]) -> None:
    """The body to the byte, or indented; the beginning of its name is enough."""
    body = put(spool("me", destination="anonymous https://x.test"), "abc-1", "a", "b")

    exact = await command("spool", "show", "abc", "--directory", "spool")
    pretty = await command("spool", "show", "abc-1", "--directory", "spool", "--pretty")

    assert exact.out.encode() == body
    assert (exact.status, pretty.status) == (0, 0)
    assert json.loads(pretty.out) == json.loads(body)
    assert '\n  "session_id": "ses_1",\n' in pretty.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ab", "2 batches begin with ab; say more of it"),
        ("abc-2", "no batch begins with abc-2; see: trimaran spool list --app trimaran"),
        ("", "3 batches begin with ; say more of it"),
    ],
)
async def test_show_of_none_or_many(
    name: str, message: str, command: Command, spool: Callable[..., SpoolFile]
) -> None:
    """It says what to do, in one line."""
    leave(spool, "dead", "anonymous https://x.test", **{"abc-1": 1, "abd": 1, "x": 1})

    ended = await command("spool", "show", name, "--directory", "spool")

    assert (ended.status, ended.out, ended.err) == (1, "", f"trimaran: {message}\n")


async def test_a_name_that_is_the_beginning_of_another(
    command: Command, spool: Callable[..., SpoolFile]
) -> None:
    """Said in full, it is that batch: ``-1`` and ``-11`` are both there in a long session."""
    leave(spool, "dead", "anonymous https://x.test", **{"abc-1": 1, "abc-11": 2})

    ended = await command("spool", "show", "abc-1", "--directory", "spool")

    assert len(json.loads(ended.out)["events"]) == 1


async def test_show_of_what_is_no_json(command: Command, spool: Callable[..., SpoolFile]) -> None:
    """A body that something has broken can still be looked at."""
    file = spool("me", destination="anonymous https://x.test")
    file.put("k1", b"\xffnot JSON", events=1, reports=0)

    ended = await command("spool", "show", "k1", "--directory", "spool", "--pretty")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err.startswith("trimaran: it is not JSON (")
    assert ended.err.endswith("; see it without --pretty\n")


async def test_send_delivers_what_a_killed_process_left(
    command: Command, receiver: Receiver, stored: Stored, nursery: trio.Nursery
) -> None:
    """All that was on disk, once, in order; then nothing of it is left, and that is told."""
    await die(nursery, command, receiver.url)
    ended = await command(
        *("spool", "send", "--app", "mine", "--directory", "spool", "--url", receiver.url)
    )

    assert (ended.status, ended.err) == (0, "")
    assert ended.out == "Delivered 96 events, dropped 0.\n"
    names = [event.get("command_name") for event in await stored(receiver, "first")]
    assert names == [None, *(f"command-{number}" for number in range(95))]
    assert keys(command) == []


@pytest.mark.parametrize("email", ["me@x.test", ""])
async def test_send_as_an_account(
    command: Command, endpoint: LoopbackEndpoint, spool: Callable[..., SpoolFile], email: str
) -> None:
    """What waits for the account goes with its token; what is anonymous does not go with it.
    Without an e-mail address, what waits for that very token does.
    """
    decision = resolve("mine", Account(endpoint.url), {})
    leave(spool, "a", worked_out(bound_to(decision, email, "t0")), k1=1)
    leave(spool, "b", f"anonymous {endpoint.url}", k2=1)
    path = command.directory / "credentials.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"url": endpoint.url, "token": "t0", "email": email}))

    ended = await command("spool", "send", "--directory", "spool", "--credentials", path)

    assert ended.status == 0
    assert ended.out == (
        "Delivered 1 events, dropped 0.\n"
        "More waits for 1 other destination; see: trimaran spool list --app trimaran\n"
    )
    assert [request.headers["idempotency-key"] for request in endpoint.requests] == ["k1"]
    assert endpoint.requests[0].headers["authorization"] == "Bearer t0"
    assert keys(command) == ["k2"]


async def test_send_what_is_old(
    command: Command, endpoint: LoopbackEndpoint, spool: Callable[..., SpoolFile]
) -> None:
    """A person who asks for it gets it sent: how long to keep it is the program's to say."""
    old = spool("dead", destination=f"anonymous {endpoint.url}", created=1.0)
    put(old, "k1", "a")
    old.close()

    ended = await command("spool", "send", "--directory", "spool", "--url", endpoint.url)

    assert (ended.status, len(endpoint.events)) == (0, 1)


async def test_send_where_nobody_answers(
    command: Command, endpoint: LoopbackEndpoint, spool: Callable[..., SpoolFile]
) -> None:
    """It says so, gives up when its time is up, and everything is still there."""
    endpoint.always(503)
    leave(spool, "dead", f"anonymous {endpoint.url}", k1=2, k2=3)

    ended = await command(
        *("spool", "send", "--directory", "spool", "--url", endpoint.url, "--timeout", "3.5")
    )

    assert ended.status == 1
    assert ended.out == "Delivered 0 events, dropped 0.\n"
    assert "trimaran: telemetry endpoint failing (status: 503)\n" in ended.err
    wait = f"trimaran: 5 events wait, and {endpoint.url} takes none"
    assert f"{wait}; giving up in " in ended.err
    assert f"{wait} for 3.5 s; giving up\n" in ended.err
    left = f"left for anonymous {endpoint.url}: 2 batches with 5 events; send them when it works\n"
    assert ended.err.endswith(f"trimaran: {left}")
    assert keys(command) == ["k1", "k2"]


async def test_send_what_is_refused(
    command: Command, endpoint: LoopbackEndpoint, spool: Callable[..., SpoolFile]
) -> None:
    """What the endpoint will never take is gone, which is no success."""
    endpoint.next(403)
    leave(spool, "dead", f"anonymous {endpoint.url}", k1=2, k2=3)

    ended = await command("spool", "send", "--directory", "spool", "--url", endpoint.url)

    assert ended.status == 1
    assert ended.out == "Delivered 3 events, dropped 2 rejected.\n"
    assert keys(command) == []


async def test_send_leaves_the_living_alone(
    command: Command, endpoint: LoopbackEndpoint, spool: Callable[..., SpoolFile]
) -> None:
    """Two processes never send the same batch; that some is left is told."""
    leave(spool, "dead", f"anonymous {endpoint.url}", k1=1)
    put(spool("lives", destination=f"anonymous {endpoint.url}"), "k2", "a", "b")

    ended = await command("spool", "send", "--directory", "spool", "--url", endpoint.url)

    assert ended.status == 1
    assert ended.out == "Delivered 1 events, dropped 0.\n"
    assert ended.err == (
        "trimaran: not sent: 1 batch with 2 events, which a process that lives has and sends\n"
    )
    assert keys(command) == ["k2"]


async def test_send_to_another_destination(
    command: Command, endpoint: LoopbackEndpoint, spool: Callable[..., SpoolFile]
) -> None:
    """What waits for another URL is not sent to this one."""
    leave(spool, "dead", "anonymous https://x.invalid", k1=1)
    leave(spool, "dead too", "anonymous https://y.invalid", k2=1)

    ended = await command("spool", "send", "--directory", "spool", "--url", endpoint.url)

    assert ended.status == 0
    assert ended.out == (
        f"Nothing was left for anonymous {endpoint.url}.\n"
        "More waits for 2 other destinations; see: trimaran spool list --app trimaran\n"
    )
    assert endpoint.requests == []
    assert keys(command) == ["k1", "k2"]


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ([], {}, "nobody to send to; say where with --url URL or --credentials FILE"),
        (
            ["--url", "https://x.invalid"],
            {"DO_NOT_TRACK": "1"},
            "nothing is sent: switched off by DO_NOT_TRACK; see: trimaran status --app trimaran",
        ),
        (
            ["--credentials", "nobody.json"],
            {},
            "nobody.json: no such file; log in, or name another one",
        ),
        (["--credentials", "spool/spool.db"], {}, "spool/spool.db: is not JSON"),
        (["--url", "ftp://x"], {}, "does not start with http:// or https://"),
    ],
)
async def test_send_when_that_may_not_be(
    arguments: list[str],
    environ: dict[str, str],
    message: str,
    command: Command,
    spool: Callable[..., SpoolFile],
) -> None:
    """One line; and what is on disk stays, also when telemetry is switched off."""
    leave(spool, "dead", "anonymous https://x.invalid", k1=1)

    ended = await command("spool", "send", "--directory", "spool", *arguments, environ=environ)

    assert ended.status in {1, 2}
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert keys(command) == ["k1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_send_ended_by_a_signal(
    number: signal.Signals,
    command: Command,
    endpoint: LoopbackEndpoint,
    spool: Callable[..., SpoolFile],
) -> None:
    """In time, with the exit status of a signal; what was not sent stays."""
    endpoint.always(503)
    leave(spool, "dead", f"anonymous {endpoint.url}", k1=1)
    running = await command.start(
        "spool", "send", "--directory", "spool", "--url", endpoint.url, "--timeout", "inf"
    )
    await running.says("takes none; waiting on")

    ended = await running.ends(number)

    assert ended.status == 128 + number
    assert f"trimaran: ended by {number.name}; what was not sent stays on disk\n" in ended.err
    assert keys(command) == ["k1"]


async def test_clear_removes_what_the_dead_left(
    command: Command, spool: Callable[..., SpoolFile]
) -> None:
    """Nothing of what lives; that it stays is told. And not a byte of the rest is left."""
    leave(spool, "dead", "anonymous https://x.test", k1=2)
    live = spool("lives", destination="anonymous https://x.test")
    put(live, "k2", "a")

    ended = await command("spool", "clear", "--directory", "spool", "--yes")

    assert ended.status == 1
    assert ended.out == "Removed 1 batch with 2 events from spool.\n"
    assert ended.err == (
        "trimaran: not removed: 1 batch with 1 event, which a process that lives has\n"
    )
    assert keys(command) == ["k2"]
    live.close()

    again = await command("spool", "clear", "--directory", "spool", "--yes")

    assert (again.status, again.err) == (0, "")
    assert keys(command) == []
    files = list((command.directory / "spool").iterdir())
    assert not any(b"command_name" in file.read_bytes() for file in files)


async def test_clear_of_one_destination(command: Command, spool: Callable[..., SpoolFile]) -> None:
    """As ``list`` writes it; the others stay, which is as it was asked for."""
    leave(spool, "one", "anonymous https://x.test", k1=1)
    leave(spool, "two", "anonymous https://y.test", k2=1)

    ended = await command(
        *("spool", "clear", "--directory", "spool", "--yes"),
        *("--destination", "anonymous https://y.test"),
    )

    assert (ended.status, ended.err) == (0, "")
    assert keys(command) == ["k1"]


async def test_clear_where_nobody_can_be_asked(
    command: Command, spool: Callable[..., SpoolFile]
) -> None:
    """It wants a yes, or does nothing."""
    leave(spool, "dead", "anonymous https://x.test", k1=1)

    ended = await command("spool", "clear", "--directory", "spool")

    assert (ended.status, ended.out) == (2, "")
    assert "nobody can be asked here; say --yes if it is meant" in ended.err
    assert keys(command) == ["k1"]


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_clear_asks_on_a_terminal(
    answer: str,
    command: Command,
    on_terminal: OnTerminal,
    spool: Callable[..., SpoolFile],
) -> None:
    """It says what would go, and takes only yes for yes."""
    leave(spool, "dead", "anonymous https://x.test", k1=2)

    async with on_terminal("spool", "clear", "--directory", "spool") as terminal:
        await terminal.says("Remove 1 batch with 2 events from spool? [y/N]:")
        await terminal.types(f"{answer}\n")
        status = await terminal.ends()

    was_no = answer == "n"
    assert status == was_no
    assert ("nothing was removed" in terminal.shown) == was_no
    assert keys(command) == (["k1"] if was_no else [])


@pytest.mark.parametrize("name", ["list", "show x", "send --url https://x.test", "clear --yes"])
@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda path: path.write_bytes(b"no database" * 1000), "file is not a database"),
        (
            make_newer,
            "was written by a newer version of trimaran; update this one",
        ),
    ],
)
async def test_a_spool_that_cannot_be_used(
    name: str, broken: Callable[[Any], object], message: str, command: Command
) -> None:
    """One line that names the file."""
    (command.directory / "spool").mkdir()
    broken(command.directory / "spool" / "spool.db")

    ended = await command("spool", *name.split(), "--directory", "spool")

    assert (ended.status, ended.out) == (1, "")
    assert ended.err == f"trimaran: spool/spool.db: {message}\n"


async def test_a_directory_without_a_name(command: Command) -> None:
    """Is a wrong use."""
    ended = await command("spool", "list", "--directory", "")

    assert ended.status == 2
    assert "it is empty" in ended.err


async def test_alone_it_says_what_there_is(command: Command) -> None:
    """The help, and that is no failure."""
    ended = await command("spool")

    assert ended.status == 0
    assert all(name in ended.out for name in ("clear", "list", "send", "show"))


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h"),
        (172_799, "48 h"),
        (604_800, "7 d"),
    ],
)
def test_ages(seconds: float, told: str) -> None:
    """In the largest unit of which it is two; a clock that was set back is no age."""
    assert age_of(seconds) == told
