"""A headless Chromium, driven over its debugging pipe: open a page, press, look, and hear what it asked for
and complained of.
"""

import base64
import fcntl
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = (
    "--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--use-gl=angle", "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader", "--disable-dev-shm-usage", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


_START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], "
    "sys.argv[3:])"
)


def find_chromium() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


class Browser:
    """One tab. Messages are JSON ended by a zero byte: ours go to file descriptor 3 of the browser, its own
    come from 4.
    """

    def __init__(self, executable: str, profile: Path, *, width: int = 1280, height: int = 800):
        theirs_in, self._out = _pipe()
        self._in, theirs_out = _pipe()
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _START,
                str(theirs_in),
                str(theirs_out),
                executable,
                *SWITCHES,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._buffer = b""
        self._n_calls = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        tab = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=tab, flatten=True)["sessionId"]
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Ask the browser, wait for its answer, and keep the events that come in between."""
        self._n_calls += 1
        session = {} if self._session is None else {"sessionId": self._session}
        os.write(
            self._out,
            json.dumps({"id": self._n_calls, "method": method, "params": parameters} | session).encode()
            + b"\0",
        )
        while (message := self._message()).get("id") != self._n_calls:
            self.events.append(message)
        if "error" in message:
            raise RuntimeError(f"{method}: {message['error']}")
        return message["result"]

    def _message(self, *, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._in], [], [], seconds)[0]:
                raise TimeoutError("chromium is silent")
            piece = os.read(self._in, 1 << 20)
            if not piece:
                raise EOFError("chromium has ended")
            self._buffer += piece
        message, self._buffer = self._buffer.split(b"\0", 1)
        return json.loads(message)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description"))
        return answer["result"].get("value")

    def open(self, page: Path) -> str:
        """Open a page and wait until it says that it is ready, or failed; what it says."""
        self.events.clear()
        self.call("Page.navigate", url=page.resolve().as_uri())
        end = time.monotonic() + 60
        while (state := self.run("document.documentElement?.dataset.state")) not in ("ready", "failed"):
            if time.monotonic() > end:
                raise TimeoutError(f"{page} is still '{state}'")
            time.sleep(0.05)
        return state

    def press(self, key: str) -> None:
        """A key goes down and up."""
        code = f"Digit{key}" if key.isdigit() else key if len(key) > 1 else f"Key{key.upper()}"
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code)

    def screenshot(self) -> np.ndarray:
        """What is to be seen, (Y, X, 3) int16, after two more frames were drawn."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        png = base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(np.int16)

    @property
    def requests(self) -> list[str]:
        """Every address the page asked for."""
        return [
            e["params"]["request"]["url"]
            for e in self.events
            if e.get("method") == "Network.requestWillBeSent"
        ]

    @property
    def complaints(self) -> list[str]:
        """Exceptions, and errors and warnings in the console."""
        kinds = {
            "Runtime.exceptionThrown": "exception",
            "Log.entryAdded": "log",
            "Runtime.consoleAPICalled": "console",
        }
        found = [(kinds[e["method"]], e["params"]) for e in self.events if e.get("method") in kinds]
        level = {
            "exception": lambda p: "error",
            "log": lambda p: p["entry"]["level"],
            "console": lambda p: p["type"],
        }
        return [json.dumps(p)[:500] for kind, p in found if level[kind](p) in ("error", "warning", "assert")]

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(20)
        os.close(self._in)
        os.close(self._out)


def _pipe() -> tuple[int, int]:
    """Both ends of a pipe, out of the way of descriptors 3 and 4."""
    low = os.pipe()
    high = fcntl.fcntl(low[0], fcntl.F_DUPFD_CLOEXEC, 10), fcntl.fcntl(low[1], fcntl.F_DUPFD_CLOEXEC, 10)
    for descriptor in low:
        os.close(descriptor)
    return high
