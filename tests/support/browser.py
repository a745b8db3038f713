"""A page in headless Chromium, over the pipe of its DevTools protocol: no package beside the browser is needed."""

import base64
import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--remote-debugging-pipe")
FAULTS = ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded", "Audits.issueAdded")


def pipe() -> list[int]:
    """Both ends of a pipe, with numbers that a browser does not take for its own."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 64) for end in ends]
    for end in ends:
        os.close(end)
    return moved


class Browser:
    """One tab; ``faults`` are the errors and warnings that the page has caused since it was opened."""

    def __init__(self):
        self.faults, self._numbers, self._rest = [], count(1), b""
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        theirs, self._commands = pipe()
        self._replies, answers = pipe()
        shell = ["bash", "-c", f'exec "$0" "$@" 3<&{theirs} 4>&{answers}']  # Chromium's pipe is these two numbers
        options = [CHROMIUM, *SWITCHES, f"--user-data-dir={self._profile.name}", "about:blank"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([*shell, *options], pass_fds=(theirs, answers), **quiet)
        os.close(theirs), os.close(answers)
        self._session = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **params) -> dict:
        """The protocol's answer to a command; what the page reports meanwhile goes to ``faults``."""
        number = next(self._numbers)
        session = {"sessionId": self._session} if self._session else {}
        os.write(
            self._commands, json.dumps({"id": number, "method": method, "params": params} | session).encode() + b"\0"
        )
        return self._until(lambda message: message.get("id") == number)["result"]

    def open(self, path: Path, width: int, dark: bool = False) -> None:
        """Load a file at ``width`` pixels, that of a phone if under 600, and wait until it is loaded."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])
        self.faults.clear()
        self.ask("Page.navigate", url=path.resolve().as_uri())
        self._until(lambda message: message.get("method") == "Page.loadEventFired")

    def value(self, script: str):
        """What a JavaScript expression, or the promise that it is, comes to."""
        found = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        found = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))

    def close(self) -> None:
        os.close(self._commands)  # which ends it
        self.process.wait(20)
        os.close(self._replies)
        self._profile.cleanup()

    def _until(self, wanted) -> dict:
        for message in self._messages():
            if message.get("method") in FAULTS:
                self.faults.append(message["params"])
            if wanted(message):
                assert "error" not in message, message
                return message
        raise AssertionError("the browser has ended")

    def _messages(self):
        while True:
            while b"\0" in self._rest:
                first, _, self._rest = self._rest.partition(b"\0")
                yield json.loads(first)
            more = os.read(self._replies, 1 << 20)
            if not more:
                return
            self._rest += more
