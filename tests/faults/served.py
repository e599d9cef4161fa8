"""The faulty server, as a process of one's own, and what starting processes takes.

In: which faults are wanted, under which names. Out: where they are, and at the end what
came in at each.
Does not know: who posts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio
import trustme

from patience import PATIENCE

from .exchange import Tally

__all__ = ["LONG", "FaultyServer", "environment", "faulty_server", "line_of", "rest_of"]

LONG = 2 * PATIENCE
"""Seconds for a process and all that it does, which takes one or two; more only if something hangs."""
FOLDER = Path(__file__).parent.parent


@dataclass
class FaultyServer:
    """A faulty server that runs, and the authority that vouches for it."""

    authority: Path
    """Its certificate."""
    _process: trio.Process
    _ports: Mapping[str, int]

    def url(self, name: str, *, scheme: str = "http", host: str = "127.0.0.1") -> str:
        """Where the fault of that name is."""
        return f"{scheme}://{host}:{self._ports[name]}"

    async def close(self) -> dict[str, Tally]:
        """End it; gives what came in, by name."""
        assert self._process.stdin is not None
        await self._process.stdin.aclose()
        tallies: dict[str, Any] = json.loads(await line_of(self._process))
        return {name: Tally(**tally) for name, tally in tallies.items()}


@asynccontextmanager
async def faulty_server(wanted: Mapping[str, str]) -> AsyncIterator[FaultyServer]:
    """A server for as long as the block lasts, which is each fault under a name of its own."""
    with tempfile.TemporaryDirectory() as directory:
        folder = Path(directory)
        make_certificates(folder)
        async with trio.open_nursery() as nursery:
            process: trio.Process = await nursery.start(
                partial(
                    trio.run_process,
                    [sys.executable, "-m", "faults.faulty_server", directory, json.dumps(wanted)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment(),
                    check=False,
                )
            )
            ports = json.loads(await line_of(process))
            yield FaultyServer(folder / "authority.pem", process, ports)
            nursery.cancel_scope.cancel()


def make_certificates(folder: Path) -> None:
    """A good certificate, and one for each way to be bad."""
    authority, stranger = trustme.CA(), trustme.CA()
    here = ("localhost", "127.0.0.1", "endpoint.test")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    for name, leaf in {
        "good": authority.issue_cert(*here),
        "expired": authority.issue_cert(*here, not_after=datetime(2020, 1, 1, tzinfo=UTC)),
        "elsewhere": authority.issue_cert("elsewhere.test"),
    }.items():
        leaf.private_key_and_cert_chain_pem.write_to_path(folder / f"{name}.pem")
    # Who vouches for others does so for itself first.
    stranger.private_key_pem.write_to_path(folder / "self-signed.pem")
    stranger.cert_pem.write_to_path(folder / "self-signed.pem", append=True)


def environment(**more: str) -> dict[str, str]:
    """That of a child process: with nothing set that concerns telemetry, proxies or trust."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name != "DO_NOT_TRACK"
        and "_TELEMETRY_" not in name
        and not name.lower().endswith("_proxy")
        and not name.startswith(("SSL_CERT_", "OTEL_", "LANGFUSE_"))
    }
    path = os.pathsep.join(filter(None, [str(FOLDER), kept.get("PYTHONPATH")]))
    return {**kept, "PYTHONPATH": path, "PYTHONWARNINGS": "error", **more}


async def line_of(process: trio.Process, *, at_once: int | None = None) -> bytes:
    """The next line that *process* prints.

    What comes *at_once* must not go beyond it: one byte is sure not to, and slow.
    """
    assert process.stdout is not None
    line = b""
    with trio.fail_after(LONG):
        while not line.endswith(b"\n"):
            part = await process.stdout.receive_some(at_once)
            if not part:
                raise RuntimeError(f"{process.args!r} ended with {await process.wait()}")
            line += part
    return line


async def rest_of(process: trio.Process) -> bytes:
    """All else that *process* prints, until its end."""
    assert process.stdout is not None
    rest = b""
    async for part in process.stdout:
        rest += part
    return rest
