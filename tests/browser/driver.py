"""Headless Chromium by its DevTools protocol, through chromedriver (W3C WebDriver); the standard library is enough."""

import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request

PACKAGES = {"chromium": "chromium", "chromedriver": "chromium-driver"}
# No request of the browser's own; no sandbox, which root in a container cannot have.
FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def find(program):
    """The path of a program, or the end of this one with what to install."""
    path = shutil.which(program)
    if path is None:
        sys.exit(f"tests/browser: error: {program} was not found: sudo apt-get install {' '.join(PACKAGES.values())}")
    return path


class Browser:
    """`with Browser() as browser:`; a profile of its own, gone at the end."""

    def __enter__(self):
        chromium, chromedriver = find("chromium"), find("chromedriver")
        self.profile = tempfile.TemporaryDirectory(prefix="onnx-osplus-browser-", ignore_cleanup_errors=True)
        self.driver = subprocess.Popen([chromedriver, "--port=0"], stdout=subprocess.PIPE, text=True)
        try:
            said = ""
            while not (port := re.search(r"successfully on port (\d+)", said)):
                said = self.driver.stdout.readline()
                assert said, "chromedriver ended before it named its port"
            self.address = f"http://127.0.0.1:{port[1]}/session"
            options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={self.profile.name}"]}
            logs = {"browser": "ALL", "performance": "ALL"}
            wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": logs}
            session = self._post("", {"capabilities": {"alwaysMatch": wanted}})
            self.address += "/" + session["sessionId"]
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_):
        try:
            self._request("DELETE", "", None)
        finally:
            self._end()

    def _end(self):
        self.driver.terminate()
        self.driver.wait(30)
        self.profile.cleanup()

    def _request(self, method, path, body):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        # Not by a proxy of the environment: the driver is on this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def _post(self, path, body):
        return self._request("POST", path, body)

    def command(self, name, **parameters):
        """A command of the DevTools protocol."""
        return self._post("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def script(self, body):
        """What `body`, the inside of a function, returns in the page."""
        return self._post("/execute/sync", {"script": body, "args": []})

    def open(self, address, width, scheme):
        """Shows a page; returns what it wrote to the console, and the addresses it asked for besides its own."""
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self.command("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._post("/url", {"url": "about:blank"})  # ends what the page before, or the browser's own first page, still does
        self._logs("browser"), self._logs("performance")
        self._post("/url", {"url": address})
        events = [json.loads(entry["message"])["message"] for entry in self._logs("performance")]
        asked = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        assert address in asked, f"the log of requests misses the page itself: {asked}"
        return self._logs("browser"), [url for url in asked if url != address and not url.startswith("data:")]

    def _logs(self, kind):
        return self._post("/se/log", {"type": kind})

    def screenshot(self, path):
        """The whole page as a PNG."""
        shot = self.command("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
