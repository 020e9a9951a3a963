"""The cluster under test and its users.

Environment:
    CAMPUS_INVENTORY: inventory directory of a deployed cluster, tests/inventories/test without it. Tests
        marked two_nodes need the people of tests/inventories/two_nodes, all others those of the former.
    CAMPUS_URL, CAMPUS_CA: address of the hub and CA file, if they are not those of the inventory.
    CAMPUS_GROUPS: expected sizes of the inventory's groups, such as "managers=2 workers=1".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster
from hub import HubUser
from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]

# The deployment first, then first logins, then what needs a server's absence or presence, the drills last.
ORDER = [
    "test_deployment",
    "test_login",
    "test_outages",
    "test_notebooks",
    "test_isolation",
    "test_accounts",
    "test_browser",
    "test_lifecycle",
    "test_identity",
    "test_users",
    "test_status",
    "test_image",
    "test_courses",
    "test_semester",
    "test_starts",
    "test_failures",
    "test_changes",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules in ORDER: a user's first start happens only once in a cluster's life."""
    items.sort(key=lambda item: ORDER.index(item.path.stem))


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


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    """The deployed cluster."""
    inventory = Path(os.environ.get("CAMPUS_INVENTORY", ROOT / "tests/inventories/test")).resolve()
    return Cluster(inventory)


@pytest.fixture(scope="session")
def new_user(cluster: Cluster) -> Callable[..., HubUser]:
    """Make users that have not logged in yet."""

    def make(name: str, password: str | None = None) -> HubUser:
        return HubUser(cluster.url, cluster.ca, name, password)

    return make


@pytest.fixture(scope="session")
def user(new_user: Callable[..., HubUser]) -> Iterator[Callable[[str], HubUser]]:
    """Users by name, logged in once; their servers are stopped at the end."""
    users: dict[str, HubUser] = {}

    def get(name: str) -> HubUser:
        if name not in users:
            users[name] = new_user(name).login()
        return users[name]

    yield get
    for known in users.values():
        known.stop()


@pytest.fixture
def alice(user: Callable[[str], HubUser]) -> HubUser:
    """A student with a running server."""
    return user("alice").start()


@pytest.fixture
def bob(user: Callable[[str], HubUser]) -> HubUser:
    """Another student with a running server."""
    return user("bob").start()


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
        page.set_default_timeout(120_000)
        yield page
        page.screenshot(path=screenshots / "last.png")
        browser.close()
