"""Accounts that move to another UID."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable

import pytest
from cluster import Cluster, Node
from hub import HubUser, SpawnFailed

pytestmark = pytest.mark.disruptive

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
    homes = f"{cluster.storage_dir}/homes"
    others = set(cluster.storage.run("ls", homes).split()) - {account["account"]}
    before = {name: owners(cluster.storage, f"{homes}/{name}") for name in others}

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
    assert {name: owners(cluster.storage, f"{homes}/{name}") for name in others} == before
    recap = cluster.playbook("renumber.yml", *arguments)
    assert sum(host["changed"] for host in recap.values()) == 0

    seen = tina.start().json(
        "import json, os; print(json.dumps([os.getuid(), os.getgid(), open('kept/word').read()]))"
    )
    assert seen == [NEW, NEW, word]
    tina.run("open('kept/more', 'w').close()")
    assert owners(cluster.storage, home) == {new}
    tina.stop()
