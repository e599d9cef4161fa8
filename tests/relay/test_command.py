"""``trimaran relay``: as a person uses it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import trio

from conftest import LoopbackEndpoint
from faults.served import LONG, environment, line_of, rest_of

from .world import World, refused_url, until


def _words(world: World, *words: str, of: str = "relay") -> list[str]:
    place = ["--directory", str(world.directory)]
    return [sys.executable, "-m", "trimaran.cli", of, *words, *place]


async def command(world: World, *words: str, of: str = "relay") -> tuple[int, str]:
    """Run the command on the world's relay; its exit status, and all that it said."""
    with trio.fail_after(LONG):
        done = await trio.run_process(
            _words(world, *words, of=of),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment(),
        )
    return done.returncode, (done.stdout + done.stderr).decode()


async def test_a_relay_is_started_looked_at_and_ended(world: World) -> None:
    """Where there is none that is said; one that is there is named; what it has stays."""
    status, said = await command(world, "status")
    assert (status, said) == (1, f"No relay runs for {world.directory}.\n")

    status, said = await command(world)
    (relay,) = world.relays()
    assert (status, said) == (0, f"A relay runs (pid {relay}), for {world.directory}.\n")
    assert (await command(world))[
        1
    ] == f"A relay runs already (pid {relay}), for {world.directory}.\n"

    url = refused_url()
    await world.agent(url)
    status, said = await command(world, "status")
    assert status == 0
    assert f"pid {relay}, version" in said
    assert f"anonymous {url}" in said
    assert "telemetry endpoint not reached" in said

    status, said = await command(world, "stop")
    assert (status, said) == (0, f"The relay has ended, for {world.directory}.\n")
    await world.gone()
    status, said = await command(world, "status")
    assert status == 1
    assert "2 batches with 8 events wait there; the next one delivers them." in said
    status, said = await command(world, "stop")
    assert (status, said) == (0, f"No relay runs, for {world.directory}.\n")


async def test_what_sends_spans_is_shown_without_its_keys(world: World) -> None:
    """By its name and URL, and so it is cleared, too."""
    url = refused_url()
    shown = f"traces: otlp {url}/v1/traces"
    await world.agent(url, otlp=url, headers={"authorization": "the-key"})

    _, status = await command(world, "status")
    assert shown in " ".join(status.split())
    await command(world, "stop")
    await world.gone()
    _, listed = await command(world, "list", of="spool")
    assert {shown, f"anonymous {url}"} <= set(listed.splitlines())
    assert "the-key" not in status + listed

    cleared, _ = await command(world, "clear", "--destination", shown, "--yes", of="spool")
    assert cleared == 0
    _, listed = await command(world, "list", of="spool")
    assert shown not in listed
    assert f"anonymous {url}" in listed


async def test_one_in_the_foreground_tells_what_it_does(
    world: World, endpoint: LoopbackEndpoint
) -> None:
    """It delivers like any other, says what is wrong, and ends with Ctrl-C; a second one is
    refused.
    """
    endpoint.always(503)
    process = await trio.lowlevel.open_process(
        _words(world, "--foreground"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(PYTHONUNBUFFERED="1"),
    )
    begun = (await line_of(process)).decode()
    assert begun == f"Relaying for {world.directory} (pid {process.pid}; Ctrl-C ends)\n"

    await until((world.directory / "relay.at").is_symlink)
    status, said = await command(world, "--foreground")
    assert (status, said) == (
        1,
        "trimaran: there is a relay already; see: trimaran relay status\n",
    )
    await world.agent(endpoint.url)
    await until(lambda: len(endpoint.requests) > 0)
    os.kill(process.pid, signal.SIGINT)

    with trio.fail_after(LONG):
        told = (await rest_of(process)).decode()
        assert await process.wait() == 0
    assert "trimaran: telemetry endpoint failing (status: 503)" in told
    assert told.endswith("Ended; what was not delivered stays on disk.\n")


async def test_where_no_relay_can_be_it_is_said_why(world: World) -> None:
    """A file in the place of its directory; a name that is none."""
    world.directory.write_text("taken")

    status, said = await command(world)
    assert status == 1
    assert said.startswith("trimaran: no relay can be started: ")
    status, said = await command(world, "--foreground")
    assert status == 1
    assert said.startswith("trimaran: no relay can be here: ")
    status, said = await command(world, "status", "--app", "?")
    assert status == 2
