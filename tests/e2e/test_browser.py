"""The whole way in a browser: login, the spawn page with its progress, JupyterLab, a cell that runs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from hub import START_TIMEOUT, HubUser
from playwright.sync_api import Page, expect, sync_playwright

CHROMIUM = "/usr/bin/chromium"
FLAGS = [
    "--headless",
    "--no-sandbox",  # the tests may run as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MINUTE = 60_000


@pytest.fixture
def screenshots(root: Path) -> Path:
    """Where the pictures are kept."""
    directory = root / "build" / "screenshots"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


@pytest.fixture
def page(screenshots: Path) -> Iterator[Page]:
    """A fresh browser; what it shows at a failure is kept too."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        # Chromium has a trust store of its own; test_login verifies the certificate.
        context = browser.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900})
        page = context.new_page()
        page.set_default_timeout(2 * MINUTE)
        yield page
        page.screenshot(path=screenshots / "last.png")
        browser.close()


def test_a_teacher_works_in_a_browser(
    cluster: Cluster, user: Callable[[str], HubUser], page: Page, screenshots: Path
) -> None:
    """From the login page to a result under a cell."""
    tina = user("tina")
    tina.stop()

    page.goto(cluster.url)
    expect(page).to_have_url(re.compile(r"/hub/login"))
    page.screenshot(path=screenshots / "1-login.png")
    page.locator("#username_input").fill("tina")
    page.locator("#password_input").fill("wrong")
    page.locator("#login_submit").click()
    expect(page.locator(".login_error")).to_be_visible()
    page.screenshot(path=screenshots / "2-refused.png")

    page.locator("#username_input").fill("tina")
    page.locator("#password_input").fill(tina.password)
    page.locator("#login_submit").click()
    expect(page).to_have_url(re.compile(r"/hub/spawn-pending/tina"))
    expect(page.locator("#progress-bar")).to_be_visible()
    page.screenshot(path=screenshots / "3-progress.png")

    expect(page).to_have_url(re.compile(r"/user/tina/lab"), timeout=START_TIMEOUT * 1000)
    launcher = page.locator('.jp-LauncherCard[data-category="Notebook"]').first
    expect(launcher).to_be_visible(timeout=2 * MINUTE)
    page.screenshot(path=screenshots / "4-lab.png")

    launcher.click()
    # JupyterLab drops a cell that is run before the kernel is connected.
    expect(page.get_by_text("Python 3 (ipykernel) | Idle")).to_be_visible(timeout=2 * MINUTE)
    cell = page.locator(".jp-Notebook .jp-CodeCell .cm-content").first
    cell.click()
    page.keyboard.type("print('the answer is', 6 * 7)")
    page.keyboard.press("Shift+Enter")
    output = page.locator(".jp-Notebook .jp-OutputArea-output").first
    expect(output).to_contain_text("the answer is 42", timeout=2 * MINUTE)
    page.screenshot(path=screenshots / "5-notebook.png")
