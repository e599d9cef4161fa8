"""Real ClickHouses, as processes of their own: Debian's server, and the engine of today.

In: a directory. Out: where one listens, over HTTP.
Does not know: what is stored there.

``clickhouse-server`` is of 2018 (``apt-get install clickhouse-server``). The engine of today is
chdb's, which is no server: ``chdb_server`` puts HTTP before it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from otlp.systems import free_ports, wait_for

USER, PASSWORD = "keeper", "open sesame: 100%"
"""Who is let in beside ``default``, who needs no password."""

_SERVER = "clickhouse-server"
_CONFIG = """
<yandex>
    <logger><level>none</level><console>0</console></logger>
    <http_port>{http}</http_port>
    <tcp_port>{tcp}</tcp_port>
    <listen_host>127.0.0.1</listen_host>
    <path>{directory}/data/</path>
    <tmp_path>{directory}/tmp/</tmp_path>
    <mark_cache_size>67108864</mark_cache_size>
    <users_config>users.xml</users_config>
    <default_profile>default</default_profile>
    <default_database>default</default_database>
</yandex>
"""
_USERS = """
<yandex>
    <profiles><default/></profiles>
    <quotas><default/></quotas>
    <users>
        <default>
            <password></password><networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile><quota>default</quota>
        </default>
        <{user}>
            <password>{password}</password><networks><ip>127.0.0.1</ip></networks>
            <profile>default</profile><quota>default</quota>
        </{user}>
    </users>
</yandex>
"""


def engines() -> Sequence[str]:
    """What can be had on this machine."""
    found = []
    if _server() is not None:
        found.append(_SERVER)
    if importlib.util.find_spec("chdb") is not None:
        found.append("chdb")
    return found


def _server() -> str | None:
    return shutil.which(_SERVER, path=f"{os.environ.get('PATH', '')}:/usr/sbin")


@contextmanager
def running_engine(kind: str, directory: Path) -> Iterator[str]:
    """One of :func:`engines` that runs while the block does; ``http://127.0.0.1:PORT``."""
    http, tcp = free_ports(2)
    with started_engine(kind, directory, http=http, tcp=tcp):
        yield f"http://127.0.0.1:{http}"


@contextmanager
def started_engine(
    kind: str, directory: Path, *, http: int, tcp: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The same, as a process; what it kept in *directory* earlier is there again."""
    if kind == _SERVER:
        server = _server()
        assert server is not None
        config = directory / "config.xml"
        config.write_text(_CONFIG.format(http=http, tcp=tcp, directory=directory))
        (directory / "users.xml").write_text(_USERS.format(user=USER, password=PASSWORD))
        command = [server, f"--config-file={config}"]
    else:
        script = Path(__file__).with_name("chdb_server.py")
        command = [sys.executable, str(script), str(directory / "data"), str(http), USER, PASSWORD]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=directory
    ) as process:
        try:
            wait_for(http, process)
            yield process
        finally:
            process.kill()
