"""What a user may do with the image, and images and mounts that a site chooses."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cluster import Cluster, wait_for
from hub import HubUser, SpawnFailed
from stub import SERVER, Student

pytestmark = pytest.mark.disruptive

# Installs a package of conda's format out of a channel of its own, with the cache where conda has it.
CONDA = """
import asyncio, hashlib, io, json, pathlib, sys, tarfile, tempfile
sys.path[:0] = ["/opt/rattler", "/opt/conda/lib/python"]
import rattler
from rattler.index import index_fs

channel = pathlib.Path(tempfile.mkdtemp())
name, content = "lib/python/campus_probe.py", b"answer = 42"
entry = {"_path": name, "path_type": "hardlink", "sha256": hashlib.sha256(content).hexdigest(),
         "size_in_bytes": len(content)}
about = {"name": "campus-probe", "version": "1", "build": "0", "build_number": 0, "depends": [],
         "subdir": "noarch", "noarch": "generic", "timestamp": 1700000000000}
members = {"info/index.json": json.dumps(about).encode(), "info/files": name.encode(), name: content,
           "info/paths.json": json.dumps({"paths_version": 1, "paths": [entry]}).encode()}
(channel / "noarch").mkdir()
with tarfile.open(channel / "noarch/campus-probe-1-0.tar.bz2", "w:bz2") as package:
    for path, data in members.items():
        member = tarfile.TarInfo(path)
        member.size, member.mode = len(data), 0o664
        package.addfile(member, io.BytesIO(data))

async def install():
    await index_fs(channel)
    records = await rattler.solve([channel.as_uri()], ["campus-probe"])
    await rattler.install(records, "/opt/conda", cache_dir="/opt/conda/pkgs", show_progress=False)

asyncio.run(install())
import campus_probe
installed = pathlib.Path(campus_probe.__file__)
conda = [campus_probe.answer, str(installed), installed.stat().st_uid, installed.stat().st_gid]
"""

# Writes into HOME what the process is, then becomes the stub server.
PROBE = """
import grp, json, os, pathlib, pwd, sys

def writable(path):
    try:
        pathlib.Path(path, "written").touch()
        return pathlib.Path(path, "written").stat().st_gid
    except OSError:
        return None

status = dict(line.split(":\\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
pathlib.Path.home().joinpath("probe.json").write_text(json.dumps({
    "uid": os.getuid(), "gid": os.getgid(), "groups": sorted(os.getgroups()),
    "name": pwd.getpwuid(os.getuid()).pw_name, "group": grp.getgrgid(os.getgid()).gr_name,
    "umask": status["Umask"].strip(), "effective": int(status["CapEff"], 16),
    "home": str(pathlib.Path.home()),
    "conda": conda, "writable": writable("/opt/conda/lib/python"), "hook": os.environ.get("HOOK_RAN"),
    "owner of conda": os.stat("/opt/conda/bin").st_uid,
}))
os.execvp("python3", ["python3", "-c", sys.argv[1]])
"""

INSTALL = """
import pathlib, subprocess, zipfile
wheel = pathlib.Path("/tmp/campus_probe-1-py3-none-any.whl")
with zipfile.ZipFile(wheel, "w") as archive:
    archive.writestr("campus_probe.py", "answer = 42")
    info = "campus_probe-1.dist-info"
    archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: campus-probe\\nVersion: 1\\n")
    archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
    archive.writestr(f"{info}/RECORD", "")
done = subprocess.run(["pip", "install", "--no-index", str(wheel)], capture_output=True, text=True)
assert done.returncode == 0, done.stderr
import campus_probe, os
file = os.stat(campus_probe.__file__)
print(campus_probe.answer, file.st_uid == os.getuid(), file.st_gid, campus_probe.__file__)
"""

COMMIT = """
import pathlib, subprocess
where = pathlib.Path.home() / "repository"
run = lambda *command: subprocess.run(command, cwd=where, check=True, capture_output=True, text=True).stdout
where.mkdir(exist_ok=True)
run("git", "init", "--quiet")
run("git", "commit", "--quiet", "--allow-empty", "--message", "a test")
print(run("git", "log", "-1", "--format=%an <%ae>"), run("whoami"))
"""

# What Jupyter keeps in SQLite files: the history of kernels and consoles, signatures of trusted notebooks.
SQLITE = """
import pathlib, subprocess
notebook = pathlib.Path.home() / "trusted.ipynb"
notebook.write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
subprocess.run(["jupyter", "trust", str(notebook)], check=True, capture_output=True)
subprocess.run(["ipython", "-c", "1 + 1"], check=True, capture_output=True)
"""

# Kernels as images_kernels names them: the kernelspec, and a cell that writes 42 into a file of the kernel's
# name. A file, for Deno may print a line only after it has called itself idle.
KERNELS = {
    "python": ("python3", "with open('python.txt', 'w') as file: file.write(str(6 * 7))"),
    "r": ("ir", "cat(6 * 7, file = 'r.txt')"),
    "octave": ("octave", "file = fopen('octave.txt', 'w'); fprintf(file, '%d', 6 * 7); fclose(file);"),
    "bash": ("bash", "echo $((6 * 7)) >bash.txt"),
    "javascript": (
        "deno",
        "const answer: number = 6 * 7; Deno.writeTextFileSync('javascript.txt', String(answer));",
    ),
    "java": (
        "java",
        'java.nio.file.Files.writeString(java.nio.file.Path.of("java.txt"), String.valueOf(6 * 7));',
    ),
}


def tell(student: HubUser, **traits: Any) -> HubUser:
    """Start a real server with traits of the spawner."""
    student.stop()
    student.spawn({"traits": traits})
    wait_for("the server's own API", lambda: student.notebook_api("GET", "status").ok, timeout=120)
    return student


@pytest.fixture(scope="module")
def student(cluster: Cluster, user: Callable[[str], HubUser]) -> Iterator[HubUser]:
    """Alice; her server is stopped at the end."""
    yield user("alice")
    user("alice").stop()


def test_a_server_in_more_groups_than_nfs_carries(cluster: Cluster, student: HubUser) -> None:
    """All of the directory's groups are the server's; what it writes for the last of them is that group's.

    AUTH_SYS carries 16 (RFC 5531, appendix A): the NFS server looks the others up itself.
    """
    seen = tell(student).json("import json, os; print(json.dumps(os.getgroups()))")
    _, account = cluster.accounts("GET", "/accounts/alice")
    assert len(account["groups"]) > 16
    assert set(account["groups"].values()) <= set(seen)
    last = max(account["groups"].values())
    shared = f"{cluster.storage_dir}{account['home']}/shared"
    cluster.storage.run("install", "-d", "-m", "2770", "-o", "root", "-g", str(last), shared)
    try:
        student.run("open('shared/mine.txt', 'w').close()")
        mine = cluster.storage.stat(f"{shared}/mine.txt")
        assert (mine["uid"], mine["gid"]) == (account["uid"], last)
    finally:
        cluster.storage.run("rm", "-r", shared)


def test_git_knows_who_commits(student: HubUser) -> None:
    """Nobody has to tell git a name before the first commit."""
    assert tell(student).run(COMMIT).split() == ["alice", "<alice@localhost>", "alice"]


def test_packages_install_through_the_build_group(student: HubUser, cluster: Cluster) -> None:
    """Pip installs into the image's environment, and what it writes keeps the group."""
    answer, own, gid, path = tell(student).run(INSTALL).split()
    assert (answer, own) == ("42", "True")
    assert path.startswith("/opt/venv/")
    assert int(gid) == cluster.value("hub_build_gid", 990)


@pytest.mark.parametrize("asked", [False, True])
def test_sqlite_files_lie_on_the_storage_only_if_asked(
    student: HubUser, cluster: Cluster, asked: bool
) -> None:
    """Locks and writes of SQLite over NFS are slow at best."""
    home = f"{cluster.storage_dir}{cluster.accounts('GET', '/accounts/alice')[1]['home']}"
    databases = ["find", home, "-name", "*.sqlite*", "-o", "-name", "*.db"]
    cluster.storage.run(*databases, "-delete")
    environment = {"NB_SQLITE_DIR": "~/.local/share/jupyter"} if asked else {}
    tell(student, environment=environment).run(SQLITE)
    found = cluster.storage.run(*databases).split()
    names = {path.rpartition("/")[2] for path in found}
    assert names >= {"nbsignatures.db", "ipython-history.sqlite"} if asked else names == set()


def test_a_read_only_image(student: HubUser, cluster: Cluster) -> None:
    """Home and memory can be written, the image cannot; the user still has a name."""
    code = (
        "import errno, getpass, pathlib, pwd, os\n"
        "def error(path):\n"
        "    try: pathlib.Path(path, 'x').touch()\n"
        "    except OSError as e: return errno.errorcode[e.errno]\n"
        "paths = ['/opt/venv/lib', '/usr', '/tmp', os.environ['HOME']]\n"
        "print(pwd.getpwuid(os.getuid()).pw_name, *map(error, paths))"
    )
    assert tell(student, read_only_rootfs=True).run(code).split() == [
        "alice",
        "EROFS",
        "EROFS",
        "None",
        "None",
    ]


@pytest.mark.two_nodes
@pytest.mark.parametrize("read_only", [False, True])
def test_the_kernels_of_the_inventory(student: HubUser, cluster: Cluster, read_only: bool) -> None:
    """They are offered and no others, and each runs as the user: its file lies on the storage."""
    listed = cluster.value("images_kernels", ["python"])
    tell(student, read_only_rootfs=read_only)
    offered = student.notebook_api("GET", "kernelspecs").json()["kernelspecs"]
    assert set(offered) == {KERNELS[name][0] for name in {"python", *listed}}
    _, account = cluster.accounts("GET", "/accounts/alice")
    for name in listed:
        kernelspec, cell = KERNELS[name]
        file = f"{cluster.storage_dir}{account['home']}/{name}.txt"
        cluster.storage.run("rm", "-f", file)
        kernel = student.kernel(kernelspec)
        kernel.run(cell)
        kernel.shutdown()
        assert cluster.storage.run("cat", file).strip() == "42"
        assert cluster.storage.stat(file)["uid"] == account["uid"]


def test_a_kernel_that_is_not_asked_for_is_not_there(student: HubUser, cluster: Cluster) -> None:
    """Neither its programs nor its packages."""
    assert cluster.value("images_kernels", ["python"]) == ["python"]
    code = (
        "import glob, importlib.util, shutil\n"
        "names = ['R', 'octave', 'deno', 'java', 'gnuplot']\n"
        "modules = ['bash_kernel', 'octave_kernel', 'metakernel', 'jjava']\n"
        "found = [*filter(shutil.which, names), *filter(importlib.util.find_spec, modules)]\n"
        "print(found + glob.glob('/usr/lib/jvm'))"
    )
    assert tell(student).run(code).strip() == "[]"


@pytest.mark.parametrize("read_only", [False, True])
def test_only_a_work_directory_on_the_storage(student: HubUser, cluster: Cluster, read_only: bool) -> None:
    """HOME is the container's; what JupyterLab shows is kept."""
    word = uuid.uuid4().hex
    traits = {"home_target": "/home/jovyan/work", "home_dir": "/home/jovyan", "read_only_rootfs": read_only}
    code = "import pathlib; home = pathlib.Path.home(); home.joinpath('dotfile').write_text('x'); print(home)"
    assert tell(student, **traits).run(code).strip() == "/home/jovyan"
    saved = {"type": "file", "format": "text", "content": word}
    student.notebook_api("PUT", "contents/work.txt", json=saved).raise_for_status()
    home = f"{cluster.storage_dir}{cluster.accounts('GET', '/accounts/alice')[1]['home']}"
    assert cluster.storage.run("cat", f"{home}/work.txt") == word
    assert "dotfile" not in cluster.storage.run("ls", "-A", home).split()


def test_a_generic_resource(student: HubUser, cluster: Cluster, user: Callable[[str], HubUser]) -> None:
    """A server that needs a graphics card is placed where one is, which is its own as long as it runs."""
    tell(student, generic_resources={"gpu": 1})
    assert cluster.node_of(cluster.notebook("alice")) is cluster.nodes[cluster.groups["workers"][0]]
    assert student.run("import os; print(os.environ['DOCKER_RESOURCE_GPU'])").strip() == "1"
    bob = user("bob")
    bob.stop()
    with pytest.raises(SpawnFailed, match="No node of the cluster"):
        bob.spawn({"traits": {"generic_resources": {"gpu": 1}}})


def test_a_directory_of_the_nodes(student: HubUser, cluster: Cluster) -> None:
    """What the allow-list opens is there, and cannot be written."""
    directory = "/srv/campus-test-data"
    word = uuid.uuid4().hex
    for node in cluster.nodes.values():
        node.run("mkdir", "-p", directory)
        node.run("tee", f"{directory}/word.txt", stdin=word)
    mounts = [{"source": directory, "target": "/data"}]
    tell(student, allowed_bind_paths=["/srv"], bind_mounts=mounts)
    assert student.run("print(open('/data/word.txt').read())").strip() == word
    with pytest.raises(AssertionError, match="Read-only file system"):
        student.run("open('/data/other.txt', 'w')")
    student.stop()
    for node in cluster.nodes.values():
        node.run("rm", "-r", directory)


def test_a_change_by_hand_is_told(student: HubUser, cluster: Cluster) -> None:
    """Whoever updates a server's service finds it in the hub's log, by name and without values."""
    tell(student)
    service = cluster.notebook("alice")
    cluster.docker("service", "update", "--detach", "--env-add", "CHANGED=by-hand", service)
    sentence = f"Service {service} of alice was updated by somebody else"

    def told() -> str:
        node = cluster.node_of(cluster.service("hub"))
        command = f"docker logs --tail 200 {node.container(cluster.service('hub'))} 2>&1"
        lines = node.run("sh", "-c", command).splitlines()
        return next((line for line in lines if sentence in line), "")

    line = wait_for("the hub's word", told, timeout=120)
    assert "ContainerSpec.Env" in line
    assert "by-hand" not in line


def test_volumes_of_those_who_are_gone_are_cleaned(
    student: HubUser, cluster: Cluster, user: Callable[[str], HubUser]
) -> None:
    """The nodes forget alice's home; bob's is in use; no file is touched."""
    volumes = {name: Student(cluster, user(name)).volumes for name in ("alice", "bob")}
    word = uuid.uuid4().hex
    tell(student).run(f"open('kept.txt', 'w').write({word!r})")
    user("bob").start()
    student.stop()
    assert any(volumes["alice"]().values())
    check = cluster.playbook("clean_volumes.yml", "--check")
    assert any(volumes["alice"]().values())
    recap = cluster.playbook("clean_volumes.yml")
    assert (
        sum(host["changed"] for host in check.values()) == sum(host["changed"] for host in recap.values()) > 0
    )
    assert not any(volumes["alice"]().values())
    assert any(volumes["bob"]().values())
    assert user("bob").run("print(1)").strip() == "1"
    again = cluster.playbook("clean_volumes.yml")
    assert sum(host["changed"] for host in again.values()) == 0
    assert tell(student).run("print(open('kept.txt').read())").strip() == word
    user("bob").stop()


def test_identity_root_gives_the_same_file(student: HubUser, cluster: Cluster) -> None:
    """A container that starts as root and moves over itself writes under the same UID and GID."""
    tell(student, identity="root")
    template = "{{.Spec.TaskTemplate.ContainerSpec.User}}"
    service = cluster.notebook("alice")
    assert cluster.docker("service", "inspect", "--format", template, service).strip() == "0:0"
    _, account = cluster.accounts("GET", "/accounts/alice")
    uid, gid, groups, capabilities, umask = student.json(
        "import json, os, pathlib\n"
        "pathlib.Path.home().joinpath('root.txt').write_text('x')\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "effective = next(line for line in status.splitlines() if line.startswith('CapEff'))\n"
        "mask = os.umask(0)\n"
        "print(json.dumps([os.getuid(), os.getgid(), os.getgroups(), int(effective.split()[1], 16), mask]))"
    )
    assert (uid, gid, capabilities, umask) == (account["uid"], account["gid"], 0, 0o007)
    assert set(account["groups"].values()) <= set(groups)
    assert 0 not in groups
    file = cluster.storage.stat(f"{cluster.storage_dir}{account['home']}/root.txt")
    assert (file["uid"], file["gid"]) == (account["uid"], account["gid"])


@pytest.mark.parametrize(("name", "identity"), [("stan", "root"), ("olga", "direct")])
def test_docker_stacks_images(
    cluster: Cluster, user: Callable[[str], HubUser], name: str, identity: str
) -> None:
    """As they are, they start as root; with the overlay they start as the user. Neither chowns anything."""
    value = uuid.uuid4().hex
    student = Student(cluster, user(name))
    student.hub.stop()
    student.hub.spawn(
        {
            "traits": {
                "identity": identity,
                "build_group_gid": 100,
                "cmd": ["python3", "-c", CONDA + PROBE, SERVER],
                "environment": {"START_VALUE": value, "START_DELAY": "0"},
            }
        }
    )
    student.value = value
    student.assert_one_server()
    _, account = cluster.accounts("GET", f"/accounts/{name}")
    file = f"{cluster.storage_dir}{account['home']}/probe.json"
    owner = cluster.storage.stat(file)
    assert (owner["uid"], owner["gid"]) == (account["uid"], account["gid"])
    seen = json.loads(cluster.storage.run("cat", file))
    assert (seen["uid"], seen["gid"]) == (account["uid"], account["gid"])
    assert (seen["name"], seen["group"], seen["home"]) == (name, account["account"], f"/home/{name}")
    assert int(seen["umask"], 8) == 0o007
    assert 100 in seen["groups"]
    assert seen["writable"] == 100, "the build group writes the image's environment"
    assert seen["conda"] == [42, "/opt/conda/lib/python/campus_probe.py", account["uid"], 100]
    assert seen["owner of conda"] == 1000, "nothing outside the home changes its owner"
    assert seen["effective"] == 0
    assert seen["hook"] == ("as 0" if identity == "root" else f"as {account['uid']}")
    student.hub.stop()
