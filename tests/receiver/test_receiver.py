"""A receiver starts in a nursery of its host's, and ends with it."""

import socket
import sqlite3
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from patience import PATIENCE
from trimaran.receiver import Receiver, StoreError, run_receiver

EVERYWHERE = "0.0.0.0"  # noqa: S104 - the tests of what that means
INGEST = "/api/observability/ingest"
BATCH = b'{"session_id":"s","timestamp":1,"events":[{"type":"n","timestamp":1,"session_id":"s"}]}'


async def post(receiver: Receiver) -> int:
    async with httpx.AsyncClient(
        base_url=receiver.url, trust_env=False, timeout=PATIENCE
    ) as client:
        headers = {"content-type": "application/json"}
        return (await client.post(INGEST, content=BATCH, headers=headers)).status_code


def names_in(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir()]


def stored(file: Path) -> int:
    with closing(sqlite3.connect(file)) as connection:
        count: int = connection.execute("SELECT count(*) FROM events").fetchone()[0]
        return count


async def test_it_runs_in_a_nursery(tmp_path: Path) -> None:
    """From when it listens until the nursery is cancelled; then its file is closed."""
    file = tmp_path / "s.sqlite"
    async with trio.open_nursery() as nursery:
        receiver = await nursery.start(partial(run_receiver, port=0, database=file))
        assert receiver == Receiver(receiver.url, file, open_to_network=False, where=str(file))
        assert receiver.url.startswith("http://127.0.0.1:")
        assert await post(receiver) == 200
        nursery.cancel_scope.cancel()

    assert names_in(tmp_path) == ["s.sqlite"]
    assert stored(file) == 1


async def test_it_starts_again_where_it_ended(tmp_path: Path) -> None:
    """On the same port at once, and with the same file."""
    port = 0
    for _ in range(2):
        async with trio.open_nursery() as nursery:
            receiver = await nursery.start(
                partial(run_receiver, port=port, database=str(tmp_path / "s.sqlite"))
            )
            port = httpx.URL(receiver.url).port or 0
            assert await post(receiver) == 200
            nursery.cancel_scope.cancel()

    assert stored(tmp_path / "s.sqlite") == 2


async def test_a_cancel_while_it_starts_ends_it(tmp_path: Path) -> None:
    """Nothing is left open, and no exception comes out but the cancel."""
    with trio.CancelScope() as scope:
        scope.cancel()
        await run_receiver(port=0, database=tmp_path / "s.sqlite")

    assert scope.cancelled_caught


@pytest.mark.parametrize(
    ("host", "url"),
    [("localhost", "http://"), (EVERYWHERE, "http://127.0.0.1:"), ("::1", "http://[::1]:")],
)
async def test_its_address_can_be_used_as_it_is(
    nursery: trio.Nursery, tmp_path: Path, host: str, url: str
) -> None:
    """Also when it listens on a name, on every interface, or on IPv6."""
    receiver = await nursery.start(
        partial(run_receiver, host=host, port=0, database=tmp_path / "s.sqlite", grace=0.2)
    )

    assert receiver.url.startswith(url)
    assert await post(receiver) == 200


class TwoAddresses(trio.abc.HostnameResolver):
    """A name service that knows one name, which stands for two addresses."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any) -> Any:
        """What both.localhost stands for."""
        assert host == b"both.localhost"
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in ("127.0.0.1", "127.0.0.2")
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        """Nobody asks for names here."""
        raise NotImplementedError


async def test_every_address_of_a_name_is_listened_on(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """With the port that was asked for; if any will do, only the first, as there is one url."""
    trio.socket.set_custom_hostname_resolver(TwoAddresses())
    start = partial(run_receiver, host="both.localhost", grace=0.2)

    one = await nursery.start(partial(start, port=0, database=tmp_path / "1.sqlite"))
    port = httpx.URL(one.url).port or 0
    with pytest.raises(ConnectionRefusedError):
        await connect("127.0.0.2", port)
    await connect("127.0.0.1", port)

    (probe,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = probe.socket.getsockname()[1]
    await probe.aclose()
    await nursery.start(partial(start, port=port, database=tmp_path / "2.sqlite"))
    await connect("127.0.0.1", port)
    await connect("127.0.0.2", port)


async def connect(address: str, port: int) -> None:
    with trio.socket.socket() as connection:
        await connection.connect((address, port))


async def test_whoever_opens_it_to_the_network_is_warned(
    nursery: trio.Nursery, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without tokens, once, on stderr; with tokens it is fine. Any name is answered then."""
    start = partial(run_receiver, host=EVERYWHERE, port=0, grace=0.2)
    one = await nursery.start(
        partial(start, database=tmp_path / "1.sqlite", tokens=frozenset({"t"}))
    )
    assert "receiver_without_tokens" not in capsys.readouterr().err
    two = await nursery.start(partial(start, database=tmp_path / "2.sqlite"))
    assert capsys.readouterr().err.count("receiver_without_tokens") == 1
    assert one.open_to_network
    assert two.open_to_network

    async with httpx.AsyncClient(base_url=two.url, trust_env=False, timeout=PATIENCE) as client:
        answer = await client.get("/healthz", headers={"host": "receiver.example"})
        assert answer.status_code == 200
        answer = await client.get("/api/sessions", headers={"host": "receiver.example"})
        assert answer.status_code == 200


async def test_an_address_in_use_is_told_plainly(
    nursery: trio.Nursery, receiver: Receiver, tmp_path: Path
) -> None:
    """As the error of the system, not wrapped, and the file is closed."""
    port = httpx.URL(receiver.url).port or 0

    with pytest.raises(OSError, match="in use"):
        await run_receiver(port=port, database=tmp_path / "other.sqlite")

    assert not (tmp_path / "other.sqlite-wal").exists()


async def test_a_file_that_is_no_store_is_told_plainly(tmp_path: Path) -> None:
    """Before anything listens."""
    (tmp_path / "notes").write_text("not a database, for a thousand years " * 100)

    with pytest.raises(StoreError, match="file is not a database"):
        await run_receiver(port=0, database=tmp_path / "notes")


async def test_two_receivers_run_side_by_side(nursery: trio.Nursery, tmp_path: Path) -> None:
    """Nothing of one is in the other."""
    one, two = [
        await nursery.start(
            partial(run_receiver, port=0, database=tmp_path / f"{name}.sqlite", grace=0.2)
        )
        for name in ("one", "two")
    ]
    assert await post(one) == 200

    assert (stored(Path(one.where)), stored(Path(two.where))) == (1, 0)


async def test_it_has_to_be_told_where_batches_go() -> None:
    """To a store, or on; not to both, and not to neither."""
    with pytest.raises(ValueError, match="either a database or an endpoint"):
        await run_receiver(port=0)
