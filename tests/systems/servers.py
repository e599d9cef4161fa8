"""MLflow and Phoenix as processes of their own, on free ports.

In: the directory of their programs. Out: their URLs, while a block runs.
Does not know: what is sent to them.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

__all__ = ["mlflow", "phoenix"]

_START_TIMEOUT = 180.0
"""Seconds."""


@contextmanager
def phoenix(programs: Path, **settings: str) -> Iterator[str]:
    """Phoenix, with settings of its own."""
    port, grpc = _free_port(), _free_port()
    with tempfile.TemporaryDirectory() as directory:
        environ = {
            "PHOENIX_WORKING_DIR": directory,
            "PHOENIX_HOST": "127.0.0.1",
            "PHOENIX_PORT": str(port),
            "PHOENIX_GRPC_PORT": str(grpc),
            "PHOENIX_TELEMETRY_ENABLED": "false",
            "PHOENIX_DISABLE_AGENT_ASSISTANT": "true",
            "PHOENIX_ENABLE_MCP_SERVER": "false",
            **settings,
        }
        with _running([programs / "phoenix", "serve"], environ, port, "/healthz") as url:
            yield url


@contextmanager
def mlflow(programs: Path) -> Iterator[str]:
    """MLflow's tracking server."""
    port = _free_port()
    with tempfile.TemporaryDirectory() as directory:
        environ = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{directory}/store.db",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": f"{directory}/artifacts",
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        }
        command: list[Path | str] = [
            programs / "uvicorn",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        command.append("mlflow.server.fastapi_app:app")
        with _running(command, environ, port, "/health") as url:
            yield url


@contextmanager
def _running(
    command: list[Path | str], environ: dict[str, str], port: int, path: str
) -> Iterator[str]:
    url = f"http://127.0.0.1:{port}"
    silent = subprocess.DEVNULL
    with subprocess.Popen(
        command, env={**os.environ, **environ}, stdout=silent, stderr=silent
    ) as process:
        try:
            until = time.monotonic() + _START_TIMEOUT
            while not _answers(url + path):
                if process.poll() is not None or time.monotonic() > until:
                    raise RuntimeError(f"{command[0]} does not start")
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code < 500
    except httpx.TransportError:
        return False


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
