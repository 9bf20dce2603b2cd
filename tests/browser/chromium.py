"""A headless Chromium that a program looks at pages with."""

import base64
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)
PATIENCE_S = 120


def missing() -> str | None:
    """Why there is no browser; None if there is one."""
    if not any(map(shutil.which, BROWSERS)) or not shutil.which("chromedriver"):
        return "needs chromium and chromedriver (Debian: apt-get install chromium chromium-driver)"
    return None


class Browser:
    """One window, which keeps what it asked the network for and what was written to its console."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        for option in (*OPTIONS, f"--user-data-dir={self.profile.name}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

    def close(self) -> None:
        """End it."""
        self.driver.quit()
        self.profile.cleanup()

    def resize(self, width: int, height: int) -> None:
        """A screen of this size in pixels; a narrow one is a phone's."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)

    def prefer(self, scheme: str) -> None:
        """Its user wants pages to be `light` or `dark`."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})

    def open(self, page: Path, hash: str = "") -> None:
        """Load a page anew, and return when it says that it is ready."""
        self.driver.get("about:blank")
        self.logs()
        self.driver.get(f"{page.absolute().as_uri()}{hash}")
        self.wait_for("return document.documentElement.dataset.ready === 'yes'")

    def run(self, script: str, *arguments: Any) -> Any:
        """What a script in the page returns."""
        return self.driver.execute_script(script, *arguments)

    def wait_for(self, script: str) -> Any:
        """Return what the script returns as soon as that is something."""
        end = time.monotonic() + PATIENCE_S
        while not (found := self.run(script)):
            if time.monotonic() > end:
                raise TimeoutError(f"{script}: {self.driver.get_log('browser')}")
            time.sleep(0.05)
        return found

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        self.driver.switch_to.active_element.send_keys(key)

    def logs(self) -> tuple[list[str], list[str]]:
        """What was written to the console, and the addresses that were asked for, since the last look."""
        console = [f"{entry['level']}: {entry['message']}" for entry in self.driver.get_log("browser")]
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [each["params"]["request"]["url"] for each in events if each["method"] == "Network.requestWillBeSent"]
        return console, asked

    def picture(self, path: Path, element: str | None = None) -> None:
        """Write a PNG of what can be seen, or of the element with this id."""
        options: dict[str, Any] = {"format": "png"}
        if element:
            box = self.run("return document.getElementById(arguments[0]).getBoundingClientRect().toJSON()", element)
            left, top = self.run("return [scrollX, scrollY]")
            place = {"x": box["x"] + left, "y": box["y"] + top, "width": box["width"], "height": box["height"]}
            options["clip"] = {**place, "scale": 1}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self.driver.execute_cdp_cmd("Page.captureScreenshot", options)["data"]))
