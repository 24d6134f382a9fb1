"""A real browser for the pages, where there is one."""

import contextlib
import json
import shutil

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
         "--disable-dev-shm-usage")
in_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver; apt-get install chromium chromium-driver")


@contextlib.contextmanager
def browser():
    """A driver that logs the console and what is fetched."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def open_page(driver, path, width=1280, dark=False):
    """Opens a file at a width, with empty logs."""
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {
        "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500})
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]})
    driver.get("about:blank")
    for log in ("browser", "performance"):
        driver.get_log(log)
    driver.get(path.as_uri())


def check_quiet(driver, path):
    """No message is in the console, and nothing but the page was fetched."""
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    fetched = {event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in fetched if not url.startswith("data:")} == {path.as_uri()}
    resources = driver.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [name for name in resources if not name.startswith("data:")] == []
