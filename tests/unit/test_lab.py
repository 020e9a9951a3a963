"""The lab's scripts: what they refuse, what they end, what they leave alone."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from ansible.template import Templar, trust_as_template

ROLE = Path(__file__).resolve().parents[2] / "roles/lab"
FILES = ROLE / "files"
GIB = 1 << 30


def load(name: str) -> types.ModuleType:
    """Return one of the role's Python scripts as a module."""
    spec = importlib.util.spec_from_file_location(name, FILES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


check_host = load("check_host")
processes = load("processes")


# --- check_host.py ------------------------------------------------------------------------------------------


@pytest.fixture
def question(tmp_path: Path) -> dict:
    """What tasks/preflight.yml asks."""
    return {
        "name": "lab",
        "nodes": ["node1", "node2", "node3"],
        "subnet": "198.51.100.0/24",
        "interface": "cj-lab",
        "memory": "2560M",
        "disk": "16G",
        "suite": "trixie",
        "cache_dir": str(tmp_path / "home/.cache"),
        "state_dir": str(tmp_path / "home/.local/state/lab"),
        "uplink": "eth0",
        "nameservers": ["192.0.2.53"],
        "kernel_digest": "abc",
        "builder": True,
    }


ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine on which the lab can run: root, TUN, 16 GiB of free memory, 100 GiB of disk, one network."""
    proc = tmp_path / "proc"
    for name, content in {
        "self/status": "Name:\tpython3\nCapEff:\t000001ffffffffff\n",
        "meminfo": f"MemTotal: 1 kB\nMemAvailable:   {16 << 20} kB\n",
        "net/route": ROUTES,
        "1/cmdline": "/sbin/init\0",
    }.items():
        path = proc / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="ascii")
    monkeypatch.setattr(check_host, "PROC", proc)
    monkeypatch.setattr(check_host, "TUN", Path("/dev/null"))
    monkeypatch.setattr(check_host.os, "geteuid", lambda: 0)
    monkeypatch.setattr(check_host.platform, "system", lambda: "Linux")
    monkeypatch.setattr(check_host.platform, "machine", lambda: "x86_64")
    # So new that the program `ip` is not there.
    monkeypatch.setattr(check_host.shutil, "which", lambda program: None)
    monkeypatch.setattr(check_host.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100 * GIB))
    return proc


@pytest.fixture
def ask(
    proc: Path, question: dict, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., list[str]]:
    """A function that asks the whole script, with changes to the question, and returns its answer."""

    def answer(verb: str = "up", **changes: object) -> list[str]:
        monkeypatch.setattr(sys, "argv", ["check_host.py", verb])
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(question | changes)))
        check_host.main()
        return json.loads(capsys.readouterr().out)

    return answer


def test_a_machine_that_serves(ask) -> None:
    assert ask() == []


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "arm64"), ("Linux", "aarch64")])
def test_another_system(ask, monkeypatch, system, machine) -> None:
    """Nothing else is looked at: the rest would only confuse."""
    monkeypatch.setattr(check_host.platform, "system", lambda: system)
    monkeypatch.setattr(check_host.platform, "machine", lambda: machine)
    expected = f"The lab runs on Linux on x86-64 only, and this is {system} on {machine}."
    assert ask(name="Not A Name") == [expected]


@pytest.mark.parametrize(
    ("change", "variable"),
    [
        ({"name": "my_lab"}, "lab_name is 'my_lab'"),
        ({"name": "abcdefghijklm"}, "lab_name is 'abcdefghijklm'"),
        ({"subnet": "198.51.0.0/16"}, "lab_subnet is '198.51.0.0/16'"),
        ({"subnet": "198.51.100.1/24"}, "lab_subnet is '198.51.100.1/24'"),
        ({"nodes": []}, "lab_nodes is []"),
        ({"nodes": ["a", "a"]}, "lab_nodes is ['a', 'a']"),
        ({"nodes": ["../up"]}, "lab_nodes is ['../up']"),
        ({"memory": "2.5G"}, "lab_node_memory is '2.5G'"),
        ({"disk": "big"}, "lab_node_disk is 'big'"),
    ],
)
def test_a_variable_that_cannot_be(ask, change, variable) -> None:
    (problem,) = ask(**change)
    assert problem.startswith(f"{variable}: it ")


def test_a_user_without_sudo(ask, monkeypatch) -> None:
    monkeypatch.setattr(check_host.os, "geteuid", lambda: 1000)
    (problem,) = ask()
    assert problem.endswith("or install sudo and allow this user to use it without a password.")


@pytest.mark.parametrize("code", [0, 1])
def test_a_user_with_sudo(ask, monkeypatch, code) -> None:
    """It must not ask for a password: nobody is there to answer."""
    commands = []

    def run(command: list[str], **_options: object) -> types.SimpleNamespace:
        commands.append(command)
        return types.SimpleNamespace(returncode=code)

    monkeypatch.setattr(check_host.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(check_host.shutil, "which", lambda name: "/usr/bin/sudo" if name == "sudo" else None)
    monkeypatch.setattr(check_host.subprocess, "run", run)
    assert [problem.split(", or ")[-1] for problem in ask()] == code * [
        "allow this user sudo without a password."
    ]
    assert commands == [["sudo", "-n", "true"]]


def test_root_of_a_container(ask, proc) -> None:
    (proc / "self/status").write_text("CapEff:\t00000000a80425fb\n", encoding="ascii")
    (problem,) = ask()
    assert problem.startswith("root has no CAP_NET_ADMIN and no CAP_SYS_ADMIN here")


def test_no_tun(ask, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(check_host, "TUN", tmp_path / "tun")
    (problem,) = ask()
    assert problem.startswith("There is no /dev/net/tun")


def test_no_memory(ask, proc) -> None:
    (proc / "meminfo").write_text(f"MemAvailable: {7 << 20} kB\n", encoding="ascii")
    (problem,) = ask()
    assert problem.startswith("3 nodes of 2560M need 7.5 GiB of memory, and 7.0 GiB are free:")


def run_nodes(proc: Path, *nodes: tuple[str, str, str]) -> None:
    """Have nodes run in a /proc: the lab's name, the node's and the directory of the lab's files of each."""
    for pid, (lab, node, state_dir) in enumerate(nodes, 10):
        arguments = ["linux", f"umid=campus-{lab}-{node}", f"ubd0={state_dir}/nodes/{node}/disk", "rw", ""]
        (proc / str(pid)).mkdir()
        (proc / str(pid) / "cmdline").write_text("\0".join(arguments), encoding="ascii")


def test_nodes_that_run_need_no_more_memory(ask, proc, question) -> None:
    """One of another lab is another one, whatever its name."""
    here = question["state_dir"]
    (proc / "meminfo").write_text(f"MemAvailable: {4 << 20} kB\n", encoding="ascii")
    run_nodes(proc, ("lab", "node1", here), ("lab", "node2", here), ("other", "node3", "/elsewhere"))
    assert ask() == []
    (proc / "11/cmdline").unlink()
    (problem,) = ask()
    assert problem.startswith("2 nodes of 2560M need 5.0 GiB of memory, and 4.0 GiB are free:")


@pytest.mark.parametrize("verb", ["up", "down"])
def test_another_lab_of_the_same_name(ask, proc, question, verb) -> None:
    """It is the only thing said, also of nodes that this lab does not have; `lab` is not `lab2`."""
    here, there = question["state_dir"], "/home/else/.local/state/campus-jupyterhub/lab"
    run_nodes(proc, ("lab", "node1", here), ("lab2", "node1", there), ("lab", "node9", there))
    (proc / "20").mkdir()
    (proc / "20/cmdline").write_text("pgrep\0-f\0umid=campus-lab-node1\0", encoding="ascii")
    (proc / "meminfo").write_text("MemAvailable: 0 kB\n", encoding="ascii")
    assert ask(verb) == [
        f"Another lab named 'lab' runs on this machine, started from another directory, {there}: "
        "end it there with `make lab-down` as the user who started it, "
        "or give this lab another lab_name and lab_subnet."
    ]
    (proc / "12/cmdline").unlink()
    assert ask("down") == []


def test_a_directory_that_only_begins_alike_is_another(ask, proc, question) -> None:
    run_nodes(proc, ("lab", "node1", question["state_dir"] + "2"))
    (problem,) = ask("down")
    assert f"started from another directory, {question['state_dir']}2: " in problem


def test_the_processes_own_words_tell_whose_a_node_is(spawn, tmp_path) -> None:
    """The script as tasks/down.yml runs it, on this machine's own /proc."""
    lab = f"t{os.getpid()}"
    spawn(*SLEEP, f"umid=campus-{lab}-node1", f"ubd0={tmp_path}/nodes/node1/disk")

    def down(state_dir: str) -> list[str]:
        question = json.dumps({"name": lab, "state_dir": state_dir})
        command = [FILES / "check_host.py", "down"]
        done = subprocess.run(command, input=question, check=True, capture_output=True, text=True)
        return json.loads(done.stdout)

    wait_until(lambda: down("/another"))
    assert f"started from another directory, {tmp_path}: " in down("/another")[0]
    assert down(str(tmp_path)) == []


def test_nothing_is_taken_away_before_the_check() -> None:
    check, refusal, *rest = yaml.safe_load((ROLE / "tasks/down.yml").read_text(encoding="utf-8"))
    assert check["ansible.builtin.command"]["argv"][1:] == ["down"]
    assert (check["changed_when"], check["check_mode"]) == (False, False)
    assert f"{check['register']}.stdout" in refusal["vars"]["__lab_problems"]
    assert "ansible.builtin.assert" in refusal
    assert "when" not in check | refusal
    assert rest


def test_no_disk(ask, question, monkeypatch, tmp_path) -> None:
    """What was made before does not count again."""
    monkeypatch.setattr(check_host.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=5 * GIB))
    needed = f"on the file system of {tmp_path}, and 5.0 GiB are free."
    assert ask() == [f"The lab needs 22.0 GiB {needed}"]
    assert ask(builder=False) == [f"The lab needs 18.0 GiB {needed}"]
    kernel = Path(question["cache_dir"], "kernel/linux-7.1-1-abc")
    image = Path(question["cache_dir"], "image/node-0123.ext4")
    disks = [Path(question["state_dir"], "nodes", node, "disk") for node in ("node1", "node2")]
    for path in (kernel, image, *disks):
        path.parent.mkdir(parents=True)
        path.touch()
    Path(question["cache_dir"], "builder/data").mkdir(parents=True)
    assert ask() == []


@pytest.mark.parametrize(
    ("route", "problem"),
    [
        ("eth1\t006433C6\t00000000\t0001\t0\t0\t0\t00FFFFFF", "198.51.100.0/24 eth1"),
        ("tun0\t000033C6\t00000000\t0001\t0\t0\t0\t0000FFFF", "198.51.0.0/16 tun0"),
        ("eth1\t406433C6\t00000000\t0001\t0\t0\t0\tC0FFFFFF", "198.51.100.64/26 eth1"),
        ("cj-lab\t006433C6\t00000000\t0001\t0\t0\t0\t00FFFFFF", ""),
        ("eth1\t006533C6\t00000000\t0001\t0\t0\t0\t00FFFFFF", ""),
    ],
    ids=["the same", "wider", "narrower", "the lab's own", "a neighbour"],
)
def test_subnet_in_use(ask, proc, route, problem) -> None:
    network, _, interface = problem.partition(" ")
    (proc / "net/route").write_text(f"{ROUTES}{route}\t0\t0\t0\n", encoding="ascii")
    reached = f"{network}, which this machine reaches through {interface}"
    whole = f"lab_subnet 198.51.100.0/24 overlaps {reached}: choose another."
    assert ask() == ([whole] if problem else [])


def test_subnet_of_an_address(ask, monkeypatch) -> None:
    """An address whose interface is down has no route."""
    link = {"ifname": "eth2", "addr_info": [{"local": "198.51.100.7", "prefixlen": 24}]}
    monkeypatch.setattr(check_host.shutil, "which", lambda name: "/sbin/ip" if name == "ip" else None)
    monkeypatch.setattr(check_host.subprocess, "check_output", lambda command: json.dumps([link]))
    (problem,) = ask()
    assert "reaches through eth2" in problem


def test_no_way_out(ask) -> None:
    assert len(ask(uplink="", nameservers=[])) == 2


def test_a_lab_that_was_made_otherwise(ask, question) -> None:
    made = {key: question[key] for key in ("nodes", "subnet", "disk", "suite")}
    path = Path(question["state_dir"], "lab.json")
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(made), encoding="utf-8")
    assert ask() == []
    assert ask(nodes=[*made["nodes"], "node4"]) == []
    assert "none may go or move" in ask(nodes=["node1"])[0]
    assert ask(disk="20G")[0].startswith("The lab was made with lab_node_disk 16G, and 20G is asked for:")


# --- processes.py -------------------------------------------------------------------------------------------


@pytest.fixture
def spawn() -> Iterator[Callable[..., subprocess.Popen]]:
    """A function that starts real processes, which end with the test."""
    started = []

    def start(*argv: str, **environment: str) -> subprocess.Popen:
        started.append(subprocess.Popen(argv, env={**os.environ, **environment}, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def bring(state: str, *specs: dict, options: tuple[str, ...] = ()) -> dict:
    """Run the script, and return its answer."""
    command = [sys.executable, str(FILES / "processes.py"), state, *options]
    done = subprocess.run(
        command, input=json.dumps(specs), check=True, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout)


# A sleep that carries any arguments.
SLEEP = (sys.executable, "-c", "import time; time.sleep(60)")


def wait_until(happened: Callable[[], object]) -> None:
    """Return when something has happened, within ten seconds."""
    for _ in range(1000):
        if happened():
            return
        time.sleep(0.01)
    pytest.fail("It did not happen.")


def test_only_what_carries_the_whole_identity_ends(spawn, tmp_path) -> None:
    ours, disk = f"umid={tmp_path}", f"ubd0={tmp_path}/disk"
    node = spawn(*SLEEP, ours, disk)
    same_name = spawn(*SLEEP, ours, "ubd0=/another/disk")
    stranger = spawn("sleep", "60")
    spec = {"name": "node1", "identity": [ours, disk]}
    assert bring("stopped", spec, options=("--check",))["stopped"] == ["node1"]
    assert node.poll() is None
    assert bring("stopped", spec) == {"changed": True, "started": [], "stopped": ["node1"]}
    assert node.wait(10) == -signal.SIGKILL
    assert (same_name.poll(), stranger.poll()) == (None, None)
    assert bring("stopped", spec)["changed"] is False


def test_all_that_was_started_with_the_mark_ends(spawn, tmp_path) -> None:
    """A build's own children too, although nothing in their command lines tells them."""
    mark = f"CAMPUS_TEST={tmp_path}"
    script = f"sleep 60 & echo $! > {tmp_path}/child; wait"
    build = spawn("sh", "-c", script, CAMPUS_TEST=str(tmp_path))
    other = spawn("sleep", "60", CAMPUS_TEST=f"{tmp_path}-other")
    speaker = spawn(*SLEEP, mark)  # says it, but was not started with it
    number = tmp_path / "child"
    wait_until(lambda: number.exists() and number.read_text().endswith("\n"))
    child = int(number.read_text())
    assert mark in processes.environment(child)
    left = tmp_path / "source"
    left.mkdir()
    spec = {"name": "build", "mark": mark, "remove": [str(left)]}
    assert bring("stopped", spec, options=("--signal", "TERM"))["stopped"] == ["build"]
    assert build.wait(10) == -signal.SIGTERM
    assert mark not in processes.environment(child)
    assert (other.poll(), speaker.poll()) == (None, None)
    assert not left.exists()


def test_two_labs_that_come_up_at_once_start_one_builder(tmp_path) -> None:
    identity = [f"umid={tmp_path}"]
    spec = {
        "name": "builder",
        "identity": identity,
        "argv": [*SLEEP, *identity],
        "log": str(tmp_path / "log"),
    }
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: bring("started", spec), range(4)))
        assert sorted(answer["changed"] for answer in answers) == [False, False, False, True]
        assert len(processes.members(spec)) == 1
    finally:
        bring("stopped", spec)


def test_a_dead_process_is_started_again_and_a_live_one_left_alone(tmp_path) -> None:
    identity = [f"umid={tmp_path}"]
    leftover = tmp_path / "run"
    leftover.mkdir()
    spec = {
        "name": "node1",
        "identity": identity,
        "argv": [*SLEEP, *identity],
        "log": str(tmp_path / "log"),
        "remove": [str(leftover)],
    }
    try:
        assert bring("started", spec, options=("--check",))["started"] == ["node1"]
        assert leftover.exists()
        assert bring("started", spec)["started"] == ["node1"]
        assert not leftover.exists()
        (first,) = processes.members(spec)
        assert bring("started", spec) == {"changed": False, "started": [], "stopped": []}
        assert processes.members(spec) == [first]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: not processes.members(spec))
        assert bring("started", spec)["started"] == ["node1"]
        assert processes.members(spec) not in ([], [first])
    finally:
        bring("stopped", spec)


def test_a_process_that_ends_at_once_says_why(tmp_path) -> None:
    spec = {
        "name": "node1",
        "identity": [str(tmp_path)],
        "argv": ["sh", "-c", "echo no such disk; exit 1", str(tmp_path)],
        "log": str(tmp_path / "log"),
    }
    with pytest.raises(subprocess.CalledProcessError) as raised:
        bring("started", spec)
    assert raised.value.stderr.startswith(f"node1 ended at once. The end of {tmp_path}/log: no such disk")


# --- packages -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("distribution", "release", "packages"),
    [
        ("Debian", "12", ["docker.io"]),
        ("Debian", "13", ["docker.io", "docker-cli"]),
        ("Debian", "14", ["docker.io", "docker-cli"]),
        ("Ubuntu", "24", ["docker.io"]),
    ],
)
def test_the_builder_has_its_client(distribution, release, packages) -> None:
    """On Debian 13 `docker` is in a package that docker.io only recommends; before there was none."""
    variables = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))
    wanted = {
        name: trust_as_template(variables[name])
        for name in ("__lab_builder_packages", "__lab_host_splits_docker")
    }
    facts = {"distribution": distribution, "distribution_major_version": release}
    templar = Templar(variables={**wanted, "ansible_facts": facts})
    assert templar.template(wanted["__lab_builder_packages"]) == packages


# --- build-kernel -------------------------------------------------------------------------------------------


def cached(directory: Path, digest: str) -> str:
    """What `build-kernel cached` prints."""
    command = [str(FILES / "build-kernel"), "cached", str(directory), digest]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_without_a_directory_there_is_no_kernel(tmp_path: Path) -> None:
    """A fresh machine has none."""
    assert cached(tmp_path / "none", "abc") == ""


def test_the_newest_kernel_with_these_options_counts(tmp_path: Path) -> None:
    """Versions compare as versions, and other options make another kernel."""
    for name in ["linux-7.9-1-abc", "linux-7.10-1-abc", "linux-7.11-1-other", "linux-7.12-1-abc.new"]:
        (tmp_path / name).touch()
    assert cached(tmp_path, "abc") == str(tmp_path / "linux-7.10-1-abc")


# Stand-ins for what needs a mirror or minutes. This kernel has FINE and ALSO_FINE, forgets whatever else is
# switched on, and does not let STUBBORN be switched off.
STAND_INS = {
    "apt-root": "",
    "apt-cache": """case $1 in search) echo "$PACKAGES" ;; show) echo 'Version: 7.1.2-1' ;; esac""",
    "apt-get": """touch "$3_7.1.2-1_all.deb" """,
    "dpkg-deb": """cat "$SOURCE" """,
    "strip": """cp "$3" "$2" """,
    "make": """
        case $2 in
        defconfig) echo CONFIG_STUBBORN=y > .config ;;
        olddefconfig)
            grep -E '^CONFIG_(FINE|ALSO_FINE)=y' asked >> .config || true ;;
        *) echo kernel > linux ;;
        esac""",
}
CONFIG = """#!/bin/sh
while [ $# -gt 0 ]; do [ "$1" = -d ] || echo "CONFIG_$2=y" >> asked; shift 2; done
"""


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """A function that builds a kernel with the given options on and off, and returns the finished command."""
    tools = tmp_path / "tools"
    tools.mkdir()
    shutil.copy(FILES / "build-kernel", tools)
    for name, body in STAND_INS.items():
        (tools / name).write_text(f"#!/bin/bash\nset -e\n{body}\n", encoding="ascii")
        (tools / name).chmod(0o755)
    script = tmp_path / "config"
    script.write_text(CONFIG, encoding="ascii")
    script.chmod(0o755)
    inner, outer = tmp_path / "linux.tar.xz", tmp_path / "package.tar"
    with tarfile.open(inner, "w:xz") as archive:
        archive.add(script, "linux-source-7.1/scripts/config")
    with tarfile.open(outer, "w") as archive:
        archive.add(inner, "./usr/src/linux-source-7.1.tar.xz")
    environment = {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PACKAGES": "linux-source-7.1 - source",
        "SOURCE": str(outer),
    }

    def run(on: str, off: str, **changes: str) -> subprocess.CompletedProcess:
        command = [
            tools / "build-kernel",
            "build",
            tmp_path / "kernel",
            "abc",
            "http://mirror",
            "trixie",
            on,
            off,
        ]
        (tmp_path / "kernel").mkdir(exist_ok=True)
        return subprocess.run(
            command, env=environment | changes, capture_output=True, text=True, timeout=60, check=False
        )

    return run


def test_a_kernel_with_all_options_is_kept(build, tmp_path) -> None:
    done = build("FINE ALSO_FINE", "DOCILE")
    assert done.returncode == 0, done.stdout + done.stderr
    kernel = tmp_path / "kernel/linux-7.1.2-1-abc"
    assert cached(tmp_path / "kernel", "abc") == str(kernel)
    assert kernel.read_text(encoding="ascii") == "kernel\n"
    assert not (tmp_path / "kernel/source").exists()


def test_options_that_a_kernel_does_not_take_are_named(build, tmp_path) -> None:
    """A name that begins like one that is set is not set by it."""
    done = build("FINE GONE ALSO_FINE ALSO", "STUBBORN DOCILE")
    assert done.returncode == 1
    expected = "The kernel 7.1.2-1 cannot have these options as asked: GONE ALSO STUBBORN(off)"
    assert done.stdout.splitlines()[-1] == expected
    assert cached(tmp_path / "kernel", "abc") == ""


def test_a_mirror_with_old_kernels_only(build) -> None:
    done = build("FINE", "", PACKAGES="linux-source-6.12 - source")
    assert done.returncode == 1
    assert "(found: linux-source-6.12)" in done.stdout


# --- finish-dpkg --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("audit", ["", "The following packages are only half configured: docker.io"])
def test_dpkg_is_finished_only_when_it_was_interrupted(tmp_path, audit) -> None:
    if any(Path("/var/lib/dpkg/updates").iterdir()):
        pytest.skip("dpkg is at work on this machine")
    program = tmp_path / "dpkg"
    program.write_text(
        """#!/bin/sh\n[ "$1" != --audit ] || exec printf '%s' "$AUDIT"\necho "dpkg $*"\n""", encoding="ascii"
    )
    program.chmod(0o755)
    done = subprocess.run(
        [FILES / "finish-dpkg", "--check"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "AUDIT": audit},
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stdout == ("dpkg --no-act --configure -a\n" if audit else "")
