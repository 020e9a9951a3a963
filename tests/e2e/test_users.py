"""Users who left: told, locked, archived, and let in again."""

from __future__ import annotations

import json
import posixpath
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from cluster import Cluster, wait_for
from hub import HubUser, SpawnFailed


def changes(cluster: Cluster, *arguments: str, **asked: Any) -> int:
    """Run the playbook, and return how many tasks changed something."""
    recap = cluster.playbook("users.yml", "--extra-vars", json.dumps(asked), *arguments)
    return sum(host["changed"] for host in recap.values())


def refusal(cluster: Cluster, **asked: Any) -> str:
    """What the playbook says when it does not do what is asked, on one line."""
    with pytest.raises(AssertionError) as raised:
        changes(cluster, **asked)
    return " ".join(str(raised.value).split())


@pytest.mark.smoke
def test_who_has_left_is_told(cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
    """Or, in a sentence, that the hub has no account that may ask."""
    for name in ("left-behind", "eve"):
        assert cluster.accounts("PUT", f"/accounts/{name}", {"groups": []})[0] in (200, 201)
    if not cluster.value("hub_ldap_search_user", ""):
        assert "The hub has no account that may search" in refusal(cluster)
        return
    assert changes(cluster) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "left-behind: not in the directory any more" in told
    assert "eve: in none of the groups that may use the hub" in told
    assert "alice:" not in told
    assert "users_lock names mallory, who has no account." in refusal(cluster, users_lock="mallory")
    assert changes(cluster, users_lock="left-behind", users_max_percent=100) > 0
    assert cluster.accounts("PUT", "/accounts/left-behind", {"groups": []})[0] == 403
    assert cluster.accounts("PUT", "/accounts/eve", {"groups": []})[0] == 200
    assert changes(cluster, users_unlock="left-behind") > 0
    assert cluster.accounts("PUT", "/accounts/left-behind", {"groups": []})[0] == 200


@pytest.mark.disruptive
def test_an_account_is_locked_archived_removed_and_back_again(
    cluster: Cluster, user: Callable[[str], HubUser]
) -> None:
    """Said by --check, done once, and nothing of the home is lost on the way."""
    carol = user("carol").start()
    word = uuid.uuid4().hex
    carol.run(
        "import os, pathlib; pathlib.Path('kept').mkdir(exist_ok=True);"
        f"open('kept/word', 'w').write({word!r}); os.symlink('/etc', 'kept/{word}')"
    )
    _, account = cluster.accounts("GET", "/accounts/carol")
    home = f"{cluster.storage_dir}{account['home']}"
    archives = cluster.value("nfs_archive_dir", f"{posixpath.dirname(cluster.storage_dir)}/archive")
    lock = {"users_lock": "carol", "users_ask_directory": False}

    assert changes(cluster, "--check", **lock) > 0
    assert cluster.accounts("GET", "/accounts/carol")[1]["locked"] is False
    assert carol.server

    assert changes(cluster, **lock) > 0
    assert cluster.accounts("GET", "/accounts/carol")[1]["locked"] is True
    assert cluster.notebook("carol") is None
    wait_for("the hub's notice of it", lambda: carol.server is None, timeout=120)
    with pytest.raises(SpawnFailed, match="account is locked"):
        carol.spawn()
    assert cluster.storage.stat(archives) == {"uid": 0, "gid": 0, "mode": "700"}
    names = cluster.storage.run("ls", archives).split()
    (archive,) = [name for name in names if name.startswith("carol-") and name.endswith(".tar.gz")]
    cluster.storage.run("env", f"--chdir={archives}", "sha256sum", "--check", f"{archive}.sha256")
    assert changes(cluster, **lock) == 0

    assert "carol cannot be both locked and unlocked." in refusal(cluster, users_unlock="carol", **lock)
    cluster.storage.run("touch", f"{home}/kept/new")
    remove = {"users_delete_homes": "carol", "users_ask_directory": False}
    assert "has changed since its last archive." in refusal(cluster, **remove)
    assert changes(cluster, **remove, users_lock="carol") > 0
    homes = cluster.storage.run("ls", "--almost-all", f"{cluster.storage_dir}/homes").split()
    assert [name for name in homes if name in ("carol", ".carol.removed")] == []
    assert cluster.storage.run("head", "--lines=1", "/etc/passwd").startswith("root:")
    assert changes(cluster, **remove) == 0

    # As docs/operations.md has it.
    last = [name for name in cluster.storage.run("ls", archives).split() if name.startswith("carol-")][-2]
    options = ("--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*", "--acls")
    where = f"--directory={cluster.storage_dir}/homes"
    cluster.storage.run("tar", "--extract", f"--file={archives}/{last}", *options, where)
    assert changes(cluster, users_unlock="carol", users_ask_directory=False) > 0
    assert cluster.storage.stat(home) == {"uid": account["uid"], "gid": account["gid"], "mode": "700"}
    assert carol.start().json("import json; print(json.dumps(open('kept/word').read()))") == word
    carol.stop()


@pytest.mark.disruptive
def test_a_node_does_not_answer(cluster: Cluster) -> None:
    """The directory is asked. An account is locked, and what may still be written to is not archived."""
    name = f"left-{uuid.uuid4().hex[:6]}"
    assert cluster.accounts("PUT", f"/accounts/{name}", {"groups": []})[0] == 201
    node = cluster.nodes[cluster.groups["workers"][0]]
    archives = cluster.value("nfs_archive_dir", f"{posixpath.dirname(cluster.storage_dir)}/archive")
    lock = {"users_lock": name, "users_ask_directory": False}

    def archived() -> bool:
        return name in cluster.storage.run("ls", archives)

    with cluster.without_power(node):
        assert "The hub has no account that may search" in refusal(cluster)
        assert f"fatal: [{node.name}]: UNREACHABLE!" in refusal(cluster, **lock)
        assert cluster.accounts("GET", f"/accounts/{name}")[1]["locked"] is True
        assert not archived()
    # The node was started again, and nothing is left to do.
    assert {host: counters["changed"] for host, counters in cluster.playbook("lab.yml").items()} == {
        "localhost": 0
    }
    assert changes(cluster, **lock) > 0
    assert archived()
