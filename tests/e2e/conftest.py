"""The cluster under test and its users.

Environment:
    CAMPUS_INVENTORY: inventory directory of a deployed cluster with the demo directory;
        without it inventories/lab.
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
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the modules in ORDER: a user's first start happens only once in a cluster's life."""
    items.sort(key=lambda item: ORDER.index(item.path.stem))


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


@pytest.fixture
def alice(user: Callable[[str], HubUser]) -> HubUser:
    """A student with a running server."""
    return user("alice").start()


@pytest.fixture
def bob(user: Callable[[str], HubUser]) -> HubUser:
    """Another student with a running server."""
    return user("bob").start()
