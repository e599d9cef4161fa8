"""Take the pictures in the documentation: ``python -m systems.pictures``.

In: where the programs of Phoenix, MLflow and a browser are. Out: a picture of each system, as it
shows a session of the demonstration.
Does not know: how the systems are started, how a browser is told what to do.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx

from systems.chromium import Browser, browser
from systems.servers import mlflow, phoenix
from trimaran._trace import trace_of

ROOT = Path(__file__).parent.parent.parent
IMAGES = ROOT / "docs" / "images"

PHOENIX_SIZE, MLFLOW_SIZE = (1440, 1460), (1180, 1400)
"""Pixels of the window. Phoenix leaves out times and tokens where there is less room."""

PATIENCE = 300.0
"""Seconds that the demonstration may take."""

_TRACE = (
    "[...document.querySelectorAll('[role=dialog]')]"
    ".find(each => each.innerText.includes('execute_tool'))"
)
"""Where both systems show a trace."""

_IS_THERE = f"{_TRACE}?.innerText.includes('session.id')"
"""Its spans, and the attributes of the one that is chosen."""

_WITHOUT_ADVICE = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""
"""MLflow's assistant takes a third of the window at the first look."""


def sessions_of_demo(url: str, **environ: str) -> dict[str, str]:
    """Have the demonstration send its sessions to *url*: their ids, by who they are of."""
    with tempfile.TemporaryDirectory() as directory:
        project = Path(directory) / "shop"
        project.mkdir()
        (project / "cart.py").write_text(
            "def total(prices):  # TODO: tax\n    return sum(prices)\n"
        )
        done = subprocess.run(
            [
                *(sys.executable, "-m", "trimaran.cli", "demo", str(project)),
                *("--sessions", "1", "--to", f"otlp+{url}"),
            ],
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=PATIENCE,
        )
    named = re.findall(r"^  ([0-9a-f]{32}) \((.*)\)$", done.stdout, re.MULTILINE)
    return {name: session_id for session_id, name in named}


def picture_phoenix(url: str, page: Browser, images: Path) -> None:
    """A trace as Phoenix shows it."""
    trace_id = trace_of(sessions_of_demo(url)["agent 1"]).trace_id
    found = httpx.get(f"{url}/v1/projects", trust_env=False, timeout=30).raise_for_status().json()
    [project] = [each["id"] for each in found["data"] if each["name"] == "default"]
    page.size(*PHOENIX_SIZE)
    page.open(
        f"{url}/projects/{project}/traces/{trace_id}",
        until=_IS_THERE,
    )
    page.picture(images / "phoenix.png", _TRACE)


def picture_mlflow(url: str, page: Browser, images: Path) -> None:
    """A trace as MLflow shows it."""
    header = "x-mlflow-experiment-id=0"
    sessions = sessions_of_demo(url, OTEL_EXPORTER_OTLP_HEADERS=header)
    trace_id = trace_of(sessions["agent 1"]).trace_id
    page.size(*MLFLOW_SIZE)
    page.before(_WITHOUT_ADVICE)
    page.open(
        f"{url}/#/experiments/0/traces?selectedEvaluationId=tr-{trace_id}",
        until=_IS_THERE,
    )
    page.picture(images / "mlflow.png", _TRACE)


def main() -> None:
    """Parse the arguments, start one system after the other, take its picture."""
    here = Path(sys.executable).parent
    parser = argparse.ArgumentParser(prog="python -m systems.pictures", description=__doc__)
    parser.add_argument("--phoenix", type=Path, default=here, help="directory of its program")
    parser.add_argument("--mlflow", type=Path, default=here, help="directory of its programs")
    parser.add_argument("--browser", default="chromium", help="its program")
    parser.add_argument("--images", type=Path, default=IMAGES, help="where pictures go")
    chosen = parser.parse_args()
    chosen.images.mkdir(exist_ok=True)
    with browser(chosen.browser) as page:
        with phoenix(chosen.phoenix) as url:
            picture_phoenix(url, page, chosen.images)
        with mlflow(chosen.mlflow) as url:
            picture_mlflow(url, page, chosen.images)
    for picture in sorted(chosen.images.glob("*.png")):
        print(f"{picture}: {picture.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
