"""Headless Chromium, driven over a pipe in its DevTools protocol, for the tests of pages."""

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile

import pytest


def needs_chromium(test):
    """Skip the test where there is no Chromium, and run it alone where there is."""
    is_missing = shutil.which("chromium") is None
    return pytest.mark.alone(pytest.mark.skipif(is_missing, reason="needs Chromium")(test))


class Browser:
    """One page of a browser; ``errors`` collects what its console complains about."""

    def __init__(self, timeout=60):
        self.errors, self.requests = [], []
        self._last = 0
        self._profile = tempfile.mkdtemp()
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
        flags += ["--disable-background-networking", "--disable-component-update", "--disable-quic"]
        self._process = subprocess.Popen(
            [
                *("bash", "-c", f'exec chromium "$@" 3<&{commands} 4>&{answers}', "chromium"),
                *(*flags, "--remote-debugging-pipe", f"--user-data-dir={self._profile}"),
            ],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer = b""
        self._session = None
        self._timeout = timeout
        target = self._send("Target.createTarget", url="about:blank")["targetId"]
        session = self._send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._send(f"{domain}.enable")

    def open(self, path, width=1280, height=900, dark=False):
        """Show a file as on a screen of that width, in pixels."""
        self._send(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._send("Emulation.setEmulatedMedia", features=[theme])
        self.errors, self.requests, self._loaded = [], [], False
        self._send("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._read()

    def run(self, expression):
        """Return the value of a JavaScript expression; promises are waited for."""
        answer = self._send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key, code):
        """Press and release a key, such as ``"Enter", 13``."""
        text = {"text": "\r"} if key == "Enter" else {}
        about = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self._send("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self._send("Input.dispatchKeyEvent", type="keyUp", **about)

    def screenshot(self, path, height=None):
        """Write a PNG of the screen, or of the page's first ``height`` pixels."""
        width = self.run("innerWidth")
        area = {"x": 0, "y": 0, "width": width, "height": height or self.run("innerHeight")}
        picture = self._send(
            "Page.captureScreenshot", captureBeyondViewport=True, clip={**area, "scale": 1}
        )
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        with contextlib.suppress(OSError):
            os.close(self._to)  # the end of its commands is the end of the browser
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)
        shutil.rmtree(self._profile, ignore_errors=True)

    def _send(self, method, **params):
        self._last += 1
        message = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._last:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def _read(self):
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], self._timeout)
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._buffer += part
        line, self._buffer = self._buffer.split(b"\0", 1)
        message = json.loads(line)
        method, params = message.get("method"), message.get("params", {})
        if method == "Page.loadEventFired":
            self._loaded = True
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.errors.append(str(params["args"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.errors.append(params["entry"]["text"])
        return message


def open_browser():
    """Make a fixture of it: ``browser = pytest.fixture(open_browser, scope="module")``."""
    browser = Browser()
    yield browser
    browser.close()
