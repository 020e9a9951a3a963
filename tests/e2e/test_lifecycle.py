"""Servers move, the hub restarts, the identity changes: files, sessions and kernels go on."""

from __future__ import annotations

import uuid

import pytest
from cluster import Cluster, wait_for
from hub import HubUser

pytestmark = pytest.mark.disruptive


def test_the_server_starts_again_on_another_node_and_finds_its_files(
    cluster: Cluster, alice: HubUser
) -> None:
    """Stop, start elsewhere at once: the file is there, and the old server is not."""
    word = uuid.uuid4().hex
    alice.run(f"import pathlib; pathlib.Path.home().joinpath('moved.txt').write_text({word!r})")
    before = cluster.node_of(cluster.notebook("alice"))
    alice.stop()
    with cluster.closed(before):
        alice.start()
        after = cluster.node_of(cluster.notebook("alice"))
    assert after.name != before.name
    found = alice.run("import pathlib; print(pathlib.Path.home().joinpath('moved.txt').read_text())")
    assert found.strip() == word


def test_stop_and_start_at_once_gives_a_new_server(cluster: Cluster, alice: HubUser) -> None:
    """A start right after a stop is never answered by the dying server."""
    for _ in range(3):
        old = cluster.notebook("alice")
        alice.stop()
        alice.start()
        assert cluster.notebook("alice") not in (None, old)
        assert alice.run("print(1 + 1)").strip() == "2"


def test_a_database_that_was_killed_starts_again(cluster: Cluster, alice: HubUser) -> None:
    """As after a power failure: with the file that says which process serves it."""
    service = cluster.service("database")
    killed = cluster.storage.container(service)
    cluster.storage.run("docker", "kill", killed)

    def replaced() -> bool:
        return cluster.storage.container(service) != killed and cluster.running(service)

    wait_for("another database", replaced, timeout=120)
    wait_for("the hub's pages", alice.logged_in, timeout=120)


def test_a_restarted_hub_keeps_sessions_servers_and_kernels(cluster: Cluster, alice: HubUser) -> None:
    """The hub's task is replaced; nobody logs in again, no kernel loses a variable."""
    service = cluster.notebook("alice")
    kernel = alice.kernel()
    kernel.run("state = 'still here'")

    cluster.restart("hub")

    wait_for("the hub's pages", alice.logged_in, timeout=180)
    assert alice.server["ready"]
    assert cluster.notebook("alice") == service
    assert kernel.run("print(state)").strip() == "still here"

    # The session's cookie, not only the token, opens the running server.
    # The running server asks the new hub about it, at an address that it has to learn first.
    def opened() -> bool:
        page = alice.get("/user/alice/lab")
        return page.status_code == 200 and page.url.endswith("/user/alice/lab")

    wait_for("alice's page", opened, timeout=120)
    kernel.shutdown()


def test_a_restarted_proxy_gets_its_routes_back(cluster: Cluster, alice: HubUser) -> None:
    """The proxy forgets everything; the hub tells it again, and servers run on."""
    service = cluster.notebook("alice")
    cluster.restart("proxy")
    wait_for(
        "alice's route",
        lambda: alice.notebook_api("GET", "status").status_code == 200,
        timeout=240,
        pause=3,
    )
    assert cluster.notebook("alice") == service


def test_a_storage_pause_holds_a_notebook_and_loses_nothing(cluster: Cluster, alice: HubUser) -> None:
    """The NFS server is away for a while: a writer waits, and every line it reports is on the disk."""
    kernel = alice.kernel()
    kernel.run(
        "import os, pathlib, threading\n"
        "written, stop = [], threading.Event()\n"
        "def work():\n"
        "    with open(pathlib.Path.home() / 'counter.txt', 'w') as file:\n"
        "        while not stop.wait(0.05):\n"
        "            print(len(written), file=file, flush=True)\n"
        "            os.fsync(file.fileno())\n"
        "            written.append(1)\n"
        "thread = threading.Thread(target=work, daemon=True); thread.start()"
    )

    def count() -> int:
        return int(kernel.run("print(len(written))"))

    wait_for("the first lines", lambda: count() > 5, timeout=60)
    with cluster.without_storage():
        pass
    resumed = count()
    wait_for("the writer goes on", lambda: count() > resumed + 5, timeout=240)
    reported = int(kernel.run("stop.set(); thread.join(60); print(len(written))", timeout=90))
    _, account = cluster.accounts("GET", "/accounts/alice")
    lines = cluster.storage.run("cat", f"{cluster.storage_dir}{account['home']}/counter.txt").split()
    assert lines == [str(number) for number in range(reported)]
    kernel.shutdown()
