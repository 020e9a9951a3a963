"""Groups beyond what NFS carries, and accounts that move to another UID."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest
from cluster import Cluster, Node, wait_for
from hub import HubUser, SpawnFailed

pytestmark = pytest.mark.disruptive

# AUTH_SYS carries 16 (RFC 5531, appendix A).
MANY = [f"course-test-{number}" for number in range(24)]
NEW = 7001
# Interrupts the move of a file's owner after the first one.
CUT_OFF = """
import os, sys
sys.path.insert(0, "/opt/campus")
import renumber
original, calls = os.chown, iter(range(10**6))
def chown(*args, **kwargs):
    if next(calls):
        os._exit(9)
    original(*args, **kwargs)
os.chown = chown
sys.argv = ["renumber.py", *sys.argv[1:]]
renumber.main()
"""


def test_more_groups_than_nfs_carries(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """The server looks the groups up itself, so a file of the last of many groups can be read and written."""
    bob = user("bob")
    bob.stop()
    _, account = cluster.accounts("PUT", "/accounts/bob", {"groups": ["students", *MANY]})
    last = max(account["groups"].values())
    assert len(account["groups"]) > 20
    home = f"{cluster.storage_dir}{account['home']}"
    word = uuid.uuid4().hex
    run = cluster.storage.run
    run("install", "-d", "-m", "2770", "-o", "root", "-g", str(last), f"{home}/shared")
    run("tee", f"{home}/shared/theirs.txt", stdin=word)
    run("chown", f"0:{last}", f"{home}/shared/theirs.txt")
    run("chmod", "0660", f"{home}/shared/theirs.txt")
    try:
        # The hub knows bob's groups from the directory, so his server has one of these 25 only.
        bob.start()
        seen = bob.json("import json, os; print(json.dumps(os.getgroups()))")
        assert last not in seen
        cluster.accounts("PUT", "/accounts/bob", {"groups": ["students", *MANY]})
        code = (
            "import pathlib\n"
            "shared = pathlib.Path.home() / 'shared'\n"
            "(shared / 'mine.txt').write_text('x')\n"
            "print((shared / 'theirs.txt').read_text())"
        )
        wait_for("the server knows the groups", lambda: bob.run(code).strip() == word, timeout=120)
        mine = cluster.storage.stat(f"{home}/shared/mine.txt")
        assert (mine["uid"], mine["gid"]) == (account["uid"], last)
    finally:
        bob.stop()
        run("rm", "-r", f"{home}/shared")
        cluster.accounts("PUT", "/accounts/bob", {"groups": ["students"]})


def owners(node: Node, directory: str) -> set[str]:
    """Owners and groups of everything in a directory, as numbers."""
    return set(node.run("find", directory, "-printf", "%U:%G\\n").split())


def test_an_account_moves_to_another_uid(cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """Said by --check, cut off in between, done by the next run; then the user's files are there."""
    tina = user("tina").start()
    word = uuid.uuid4().hex
    tina.run(
        f"import pathlib; pathlib.Path('kept').mkdir(exist_ok=True); open('kept/word', 'w').write({word!r})"
    )
    _, account = cluster.accounts("GET", "/accounts/tina")
    home = f"{cluster.storage_dir}{account['home']}"
    old, new = f"{account['uid']}:{account['gid']}", f"{NEW}:{NEW}"
    arguments = ("--extra-vars", json.dumps({"renumber_user": "tina", "renumber_uid": NEW}))
    before = {
        name: owners(cluster.storage, f"{cluster.storage_dir}/homes/{name}") for name in ("alice", "bob")
    }

    status, answer = cluster.accounts("PUT", "/accounts/tina", {"uid": NEW, "gid": NEW})
    assert (status, "renumber.yml" in answer["reason"]) == (409, True)
    cluster.playbook("renumber.yml", "--check", *arguments)
    assert owners(cluster.storage, home) == {old}
    assert tina.server

    service = cluster.storage.container(cluster.service("accounts"))
    inside = ("docker", "exec", "--interactive", service, "python3")
    cluster.storage.run(*inside, "/opt/campus/renumber.py", "begin", "tina", str(NEW))
    with pytest.raises(AssertionError):
        cluster.storage.run(*inside, "-", "finish", "tina", str(NEW), stdin=CUT_OFF)
    assert owners(cluster.storage, home) == {old, new}
    tina.stop()
    with pytest.raises(SpawnFailed, match="being moved to another UID"):
        tina.spawn()

    recap = cluster.playbook("renumber.yml", *arguments)
    assert sum(host["changed"] for host in recap.values()) > 0
    assert owners(cluster.storage, home) == {new}
    assert {name: owners(cluster.storage, f"{cluster.storage_dir}/homes/{name}") for name in before} == before
    recap = cluster.playbook("renumber.yml", *arguments)
    assert sum(host["changed"] for host in recap.values()) == 0

    seen = tina.start().json(
        "import json, os; print(json.dumps([os.getuid(), os.getgid(), open('kept/word').read()]))"
    )
    assert seen == [NEW, NEW, word]
    tina.run("open('kept/more', 'w').close()")
    assert owners(cluster.storage, home) == {new}
    tina.stop()
