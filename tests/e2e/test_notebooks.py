"""From login to a file on the storage, under the UID and GID that the accounts service gave."""

from __future__ import annotations

import uuid
from collections.abc import Callable

import pytest
from cluster import Cluster
from hub import HubUser

# What a process may do, as the kernel sees it.
STATUS = """
import json, os, pathlib
status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()), "umask": status["Umask"],
    "capabilities": [status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"], "home": os.environ["HOME"], "cwd": os.getcwd(),
    "processes": sorted({os.stat(entry).st_uid for entry in pathlib.Path("/proc").glob("[0-9]*")}),
}))
"""


@pytest.mark.smoke
def test_a_file_lands_on_the_storage_under_the_users_own_ids(cluster: Cluster, alice: HubUser) -> None:
    """Saved in a kernel, seen on the storage node's disk, in a home that is closed to others."""
    status, account = cluster.accounts("GET", "/accounts/alice")
    assert status == 200
    word = uuid.uuid4().hex
    alice.run(f"import pathlib; pathlib.Path.home().joinpath('e2e.txt').write_text({word!r})")

    home = f"{cluster.storage_dir}{account['home']}"
    assert cluster.storage.run("cat", f"{home}/e2e.txt") == word
    file = cluster.storage.stat(f"{home}/e2e.txt")
    assert (file["uid"], file["gid"]) == (account["uid"], account["gid"])
    assert file["mode"] == "660"  # umask 007: shared folders can be shared
    assert cluster.storage.stat(home) == {"uid": account["uid"], "gid": account["gid"], "mode": "700"}


@pytest.mark.smoke
def test_a_notebook_saved_by_the_server_lands_there_too(cluster: Cluster, alice: HubUser) -> None:
    """The server's own writing, not only the kernel's."""
    notebook = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    answer = alice.notebook_api("PUT", "contents/e2e.ipynb", json={"type": "notebook", "content": notebook})
    assert answer.status_code in (200, 201), answer.text
    _, account = cluster.accounts("GET", "/accounts/alice")
    file = cluster.storage.stat(f"{cluster.storage_dir}{account['home']}/e2e.ipynb")
    assert (file["uid"], file["gid"]) == (account["uid"], account["gid"])


@pytest.mark.smoke
def test_nothing_runs_as_root(cluster: Cluster, alice: HubUser) -> None:
    """Every process has the user's UID, the role's and the image's groups, and no capability at all."""
    _, account = cluster.accounts("GET", "/accounts/alice")
    seen = alice.json(STATUS)
    assert (seen["uid"], seen["gid"]) == (account["uid"], account["gid"])
    assert seen["processes"] == [account["uid"]]
    assert set(account["groups"].values()) <= set(seen["groups"])
    assert not {0, 100} & set(seen["groups"])
    assert {int(mask, 16) for mask in seen["capabilities"]} == {0}
    assert seen["no_new_privileges"].strip() == "1"
    assert int(seen["umask"], 8) == 0o007
    assert seen["home"] == seen["cwd"] == f"/home/{account['account']}"


@pytest.mark.smoke
def test_the_user_has_a_name(alice: HubUser) -> None:
    """UID and groups resolve inside the container: git, ssh and the prompt ask for them."""
    name = alice.run("import getpass, pwd, os; print(getpass.getuser(), pwd.getpwuid(os.getuid()).pw_name)")
    assert name.split() == ["alice", "alice"]


@pytest.mark.smoke
def test_the_directorys_numbers_win(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """Carol has uidNumber and gidNumber in the directory; the notebook and the home have them too."""
    carol = user("carol").start()
    seen = carol.json(STATUS)
    assert (seen["uid"], seen["gid"]) == (5003, 5003)
    _, account = cluster.accounts("GET", "/accounts/carol")
    assert (account["uid"], account["gid"]) == (5003, 5003)
    home = cluster.storage.stat(f"{cluster.storage_dir}{account['home']}")
    assert home == {"uid": 5003, "gid": 5003, "mode": "700"}
    carol.stop()


def test_numbers_are_nobody_elses(cluster: Cluster, alice: HubUser, bob: HubUser) -> None:
    """Two students, two UIDs, one role group."""
    first, second = (cluster.accounts("GET", f"/accounts/{name}")[1] for name in ("alice", "bob"))
    assert first["uid"] != second["uid"]
    assert first["home"] != second["home"]
    assert first["groups"]["students"] == second["groups"]["students"]
    assert min(first["uid"], second["uid"]) >= 100000


def test_accounts_are_real_to_the_storage(cluster: Cluster, alice: HubUser) -> None:
    """The NFS server resolves the users' groups itself, so it must know them."""
    _, account = cluster.accounts("GET", "/accounts/alice")
    answer = cluster.storage.run("docker", "exec", cluster.nfs_container, "id", account["account"])
    assert f"uid={account['uid']}(alice)" in answer
    assert "(students)" in answer


def test_teachers_have_another_image(
    cluster: Cluster, user: Callable[[str], HubUser], alice: HubUser
) -> None:
    """The image follows the role."""

    def image(name: str) -> str:
        service = cluster.notebook(name)
        return cluster.docker(
            "service", "inspect", "--format", "{{.Spec.TaskTemplate.ContainerSpec.Image}}", service
        )

    tina = user("tina").start()
    assert image("tina") != image("alice")
    assert "(teachers)" in cluster.storage.run("docker", "exec", cluster.nfs_container, "id", "tina")
    tina.stop()


def test_memory_has_a_limit(cluster: Cluster, alice: HubUser) -> None:
    """A greedy notebook is stopped by its own limit, not by the node's end."""
    service = cluster.notebook("alice")
    limit = cluster.docker(
        "service", "inspect", "--format", "{{.Spec.TaskTemplate.Resources.Limits.MemoryBytes}}", service
    )
    assert int(limit) > 0
