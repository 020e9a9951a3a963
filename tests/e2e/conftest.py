"""The cluster under test and its users.

Environment:
    CAMPUS_INVENTORY: inventory directory of a deployed cluster with the demo directory and the odd names;
        without it inventories/lab.
    CAMPUS_URL, CAMPUS_CA: address of the hub and CA file, if they are not those of the inventory.
    CAMPUS_GROUPS: expected sizes of the inventory's groups, such as "managers=2 workers=1".
    CAMPUS_PUT_BACK: "no" leaves the hub as the tests have set it up; for nodes that end with them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster import Cluster, wait_for
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


STUDENTS_AND_TEACHERS = ["alice", "bob", "carol", "tina", "ada"]

# Lines of jupyterhub_config.py. A spawner outlives its start: what one sets is put back before the next.
TUNABLE = """
def take_traits(spawner):
    for name, value in getattr(spawner, "traits_before", {}).items():
        setattr(spawner, name, value)
    wanted = spawner.user_options.get("traits", {})
    spawner.traits_before = {name: getattr(spawner, name) for name in wanted}
    for name, value in wanted.items():
        setattr(spawner, name, value)

c.Spawner.pre_spawn_hook = take_traits
# The start button answers at once, so that every stage can be seen.
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0.2, "slow_stop_timeout": 60}
"""

# A stand-in for a docker-stacks image, and the overlay on it, as docs/images.md has it.
IMAGES = [
    {
        "name": "docker-stacks",
        "context": str(ROOT / "tests/e2e/images/docker-stacks"),
        "parent": "base",
        "hosts": ["swarm"],
    },
    {
        "name": "docker-stacks-overlay",
        "parent": "docker-stacks",
        "files": [
            f"images/notebook/{name}" for name in ("start.sh", "jupyter_config.py", "ipython_config.py")
        ],
        "hosts": ["swarm"],
    },
]


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
    inventory = Path(os.environ.get("CAMPUS_INVENTORY", ROOT / "inventories/lab")).resolve()
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


@pytest.fixture(scope="session")
def tunable(cluster: Cluster, user: Callable[[str], HubUser]) -> Iterator[Cluster]:
    """The cluster with a hub whose spawner takes any trait from a start's options."""
    groups = cluster.value("hub_ldap_groups")
    courses = {f"course-test-{number}": groups["students"] for number in range(20)}
    variables = {
        "hub_extra_config": TUNABLE,
        "hub_named_servers": True,
        # more groups than AUTH_SYS carries
        "hub_ldap_groups": groups | courses,
        "hub_storage_groups": [*cluster.value("hub_storage_groups", ["students", "teachers"]), *courses],
        "images_extra": IMAGES,
        "hub_notebook_images": {"hub-admins": "docker-stacks-overlay", "teachers": "docker-stacks"},
    }
    cluster.playbook("site.yml", "--extra-vars", json.dumps(variables))
    wait_for("the hub's pages", user("alice").logged_in, timeout=180)
    yield cluster
    for name in STUDENTS_AND_TEACHERS:
        user(name).stop()
    if os.environ.get("CAMPUS_PUT_BACK") == "no":
        return
    cluster.playbook("site.yml")
    wait_for("the hub's pages", user("alice").logged_in, timeout=180)


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
