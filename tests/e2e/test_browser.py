"""The whole way in a browser: login, the spawn page with its progress, JupyterLab, a cell that runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from cluster import Cluster
from hub import START_TIMEOUT, HubUser
from playwright.sync_api import Page, expect

MINUTE = 60_000


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
