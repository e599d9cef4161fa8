"""Chromium without a screen, told what to do over a pipe.

In: addresses of pages, expressions of JavaScript. Out: what these give; pictures.
Does not know: what is on the pages.

It speaks the browser's own protocol (https://chromedevtools.github.io/devtools-protocol/):
messages of JSON with a zero byte behind each, to its descriptor 3 and from its descriptor 4.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["Browser", "browser"]

PATIENCE = 120.0
"""Seconds until a page has to show what is waited for."""

_SETTLING = 3.0
"""Seconds in which what moves on a page comes to rest."""

_OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
)

_ON_ITS_DESCRIPTORS = """
import os, sys
ours, theirs, *command = sys.argv[1:]
ours, theirs = os.dup(int(ours)), os.dup(int(theirs))  # either may be 3 or 4 itself
os.dup2(ours, 3)
os.dup2(theirs, 4)
os.execvp(command[0], command)
"""


class Browser:
    """One page of a browser. Make it with :func:`browser`."""

    def __init__(self, write: int, read: int) -> None:
        self._write = write
        self._read = read
        self._rest = b""
        self._number = 0
        self._session: str | None = None
        target = self._do("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._do("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        self._do("Page.enable")

    def size(self, width: int, height: int) -> None:
        """Have a window of as many pixels."""
        self._do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def before(self, script: str) -> None:
        """Run *script* in every page to come, before its own."""
        self._do("Page.addScriptToEvaluateOnNewDocument", source=script)

    def open(self, url: str, until: str) -> None:
        """Show *url*, and wait until *until* is true there."""
        self._do("Page.navigate", url=url)
        self.wait(until)

    def wait(self, until: str) -> None:
        """Wait until *until* is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.value(f"Boolean({until})"):
            if time.monotonic() > deadline:
                raise RuntimeError(f"it does not come to be: {until}")
            time.sleep(0.2)

    def value(self, expression: str) -> Any:
        """What *expression* is; None where the page is not there yet."""
        answer = self._do("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def picture(self, path: Path, element: str) -> None:
        """Take a picture of *element*, an expression, as it is a moment later."""
        time.sleep(_SETTLING)
        box = self.value(
            "(({x, y, width, height}) => ({x, y, width, height}))"
            f"({element}.getBoundingClientRect())"
        )
        shot = self._do("Page.captureScreenshot", clip={**box, "scale": 1})
        path.write_bytes(b64decode(shot["data"]))

    def _do(self, method: str, **parameters: object) -> dict[str, Any]:
        """Have one thing done; its result. Whatever else is told meanwhile is passed over."""
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], PATIENCE)[0]:
                raise RuntimeError("the browser says nothing any more")
            piece = os.read(self._read, 65536)
            if not piece:
                raise RuntimeError("the browser is gone")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


@contextmanager
def browser(program: str) -> Iterator[Browser]:
    """A browser, while a block runs."""
    from_us, to_browser = os.pipe()
    from_browser, to_us = os.pipe()
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory,
        subprocess.Popen(
            [
                *(sys.executable, "-c", _ON_ITS_DESCRIPTORS, str(from_us), str(to_us)),
                *(program, *_OPTIONS, f"--user-data-dir={directory}"),
            ],
            pass_fds=(from_us, to_us),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process,
    ):
        os.close(from_us)
        os.close(to_us)
        try:
            yield Browser(to_browser, from_browser)
        finally:
            os.close(to_browser)
            os.close(from_browser)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
