"""What the module finds on a node, with files and servers of the test's own."""

from __future__ import annotations

import datetime
import importlib.util
import ipaddress
import os
import pathlib
import socket
import ssl
import sys
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

PATH = pathlib.Path(__file__).parents[2] / "plugins" / "modules" / "preflight_node.py"
SPEC = importlib.util.spec_from_file_location("preflight_node", PATH)
node = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(node)

DISTRIBUTIONS = {"debian": "12"}
ADVICE = "install Debian 12 or newer."


@pytest.mark.parametrize(
    ("release", "problems"),
    [
        ('ID=debian\nVERSION_ID="12"\n', []),
        ('ID=debian\nVERSION_ID="13"\n', []),
        ("ID=debian\n", []),
        (
            'PRETTY_NAME="Debian GNU/Linux 11"\nID=debian\nVERSION_ID="11"\n',
            [f"runs Debian GNU/Linux 11, which is too old: {ADVICE}"],
        ),
        (
            'PRETTY_NAME="Ubuntu 24.04 LTS"\nID=ubuntu\nVERSION_ID="24.04"\n',
            [f"runs Ubuntu 24.04 LTS, which is not supported: {ADVICE}"],
        ),
        ("ID=fedora\nVERSION_ID=42\n", [f"runs fedora, which is not supported: {ADVICE}"]),
        ("", [f"runs an unknown system, which is not supported: {ADVICE}"]),
    ],
)
def test_distribution(release, problems):
    assert node.distribution_problems(DISTRIBUTIONS, release) == problems


def test_a_builder_needs_a_package_of_buildx():
    bookworm = 'PRETTY_NAME="Debian GNU/Linux 12"\nID=debian\nVERSION_ID="12"\n'
    assert node.distribution_problems(DISTRIBUTIONS, bookworm, needs_buildx=True) == [
        "runs Debian GNU/Linux 12, which has no package of Docker's buildx plugin and cannot build images: "
        "put another host into the group builder, or set docker_source to upstream."
    ]
    for release in (bookworm.replace("12", "13"), "ID=debian\n"):
        assert node.distribution_problems(DISTRIBUTIONS, release, needs_buildx=True) == []


ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t016433C6\t0003\t0\t0\t0\t00000000\t0\t0\t0
eth0\t006433C6\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth1\t0000630A\t016433C6\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
*\t0000620A\t00000000\t0201\t0\t0\t0\t0000FFFF\t0\t0\t0
docker0\t00001EAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br-0123456789ab\t00021EAC\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
br-lan\t0001A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is in the machine's byte order")
def test_routes():
    assert node.routes(ROUTES) == [
        {"destination": "198.51.100.0/24", "interface": "eth0", "on_link": True},
        {"destination": "10.99.0.0/16", "interface": "eth1", "on_link": False},
        {"destination": "192.168.1.0/24", "interface": "br-lan", "on_link": True},
    ]
    assert node.routes("") == []


@pytest.fixture
def kernel(monkeypatch):
    """Return a function that pretends that these files are all that the kernel tells."""

    def pretend(files: dict[str, str]) -> list[str]:
        features = {
            feature: (purpose, tuple(path for path in paths if path in files), module, option)
            for feature, (purpose, paths, module, option) in node.FEATURES.items()
        }
        # A path that the test names exists: any path that does will do.
        monkeypatch.setattr(
            node,
            "FEATURES",
            {
                name: (use, ("/",) if paths else (), mod, opt)
                for name, (use, paths, mod, opt) in features.items()
            },
        )
        monkeypatch.setattr(node, "read", lambda path: files.get(path, ""))
        monkeypatch.setattr(node, "kernel_config", lambda release: files.get("config", ""))
        return node.kernel_problems("7.0")

    return pretend


ALL_BUILT_IN = {
    "/proc/filesystems": "nodev\toverlay\nnodev\tnfs4\n\text4\n",
    "/proc/net/ip_vs": "",
    "/sys/module/vxlan": "",
}
MODULES = "".join(
    f"kernel/x/{name}.ko.xz:\n" for name in ("overlayfs/overlay", "nfs/nfsv4", "vxlan", "ip_vs")
)


@pytest.mark.parametrize(
    "files",
    [
        ALL_BUILT_IN,
        {key: value for key, value in ALL_BUILT_IN.items() if key != "/sys/module/vxlan"},
        {"/lib/modules/7.0/modules.dep": MODULES},
        {"/lib/modules/7.0/modules.builtin": MODULES.replace(".xz:", "")},
        {"config": "\nCONFIG_OVERLAY_FS=y\nCONFIG_NFS_V4=y\nCONFIG_VXLAN=y\nCONFIG_IP_VS=y\n"},
    ],
    ids=["built in", "vxlan does not show", "modules", "modules.builtin", "configuration"],
)
def test_a_kernel_that_serves(kernel, files):
    assert kernel(files) == []


def test_a_kernel_without_nfs(kernel):
    files = {**ALL_BUILT_IN, "/proc/filesystems": "nodev\toverlay\n"}
    assert kernel(files) == [
        "has a kernel (7.0) without nfs4, needed for homes on NFS: "
        "install the distribution's standard kernel."
    ]


def test_a_kernel_whose_modules_are_gone_after_an_upgrade(kernel):
    files = {**ALL_BUILT_IN, "/proc/filesystems": "nodev\toverlay\n", "config": "\nCONFIG_NFS_V4=m\n"}
    assert kernel(files) == [
        "has no modules for its running kernel 7.0, so nfs4 cannot be loaded: reboot it, or install them."
    ]


def test_a_kernel_without_a_module(kernel):
    found = kernel({"/lib/modules/7.0/modules.dep": MODULES.replace("/vxlan.ko", "/geneve.ko")})
    assert [problem.split(",")[0] for problem in found] == ["has a kernel (7.0) without vxlan"]


def test_memory_and_disk(tmp_path):
    assert node.memory_problems(1) == []
    assert "MB of memory, 99999999 MB are needed." in node.memory_problems(99999999)[0]
    paths = [str(tmp_path / "not" / "there"), str(tmp_path)]
    assert node.disk_problems(paths, 0) == []
    assert len(node.disk_problems(paths, 10**12)) == 1


@pytest.mark.parametrize(
    ("kind", "options", "fine"),
    [
        ("ext4", "rw,quota,usrquota", True),
        ("ext4", "rw,usrjquota=aquota.user,jqfmt=vfsv1", True),
        ("xfs", "rw,attr2,usrquota", True),
        ("xfs", "rw,noquota", False),
        ("ext4", "rw,quota,grpquota", False),
    ],
)
def test_user_quotas_of_a_file_system(tmp_path, kind, options, fine):
    device = tmp_path.stat().st_dev
    number = f"{os.major(device)}:{os.minor(device)}"
    other = "22 21 0:999 / / rw - ext4 /dev/sda1 rw,usrquota"
    table = f"{other}\n25 21 {number} / /srv rw,relatime shared:1 - {kind} /dev/sdb1 {options}\n"
    found = node.quota_problems(str(tmp_path / "not" / "there"), table)
    assert found == [] if fine else f"({kind} on /dev/sdb1): mount it with the option usrquota" in found[0]
    assert len(node.quota_problems(str(tmp_path), other)) == 1
    assert node.quota_problems("", table) == []


def test_a_port_that_somebody_else_holds():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = node.port_problems([port])
        assert len(found) == 1
        assert found[0].startswith(f"has port {port} taken by ")
    assert node.port_problems([port]) == []


def test_a_port_that_docker_holds(monkeypatch):
    monkeypatch.setattr(node, "is_docker", lambda pid: True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert node.port_problems([server.getsockname()[1]]) == []


def test_a_refusal_is_an_answer():
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    assert node.peer_problems({"node2": "127.0.0.1"}, [free], 2) == []


def test_a_peer_that_does_not_answer(monkeypatch):
    monkeypatch.setattr(node, "answers", lambda address, port, timeout: "no answer")
    assert node.peer_problems({"node2": "192.0.2.2"}, [7946, 22], 2) == [
        "does not reach node2 at 192.0.2.2 (TCP 7946, 22: no answer): check route and firewall."
    ]


@pytest.mark.parametrize(
    ("server", "port", "tls", "expected"),
    [
        ("ldap.example.org", 0, "ldaps", ("ldap.example.org", 636, False)),
        ("ldap.example.org", 0, "starttls", ("ldap.example.org", 389, True)),
        ("ldap.example.org", 1636, "ldaps", ("ldap.example.org", 1636, False)),
        ("ldap.example.org:1389", 0, "starttls", ("ldap.example.org", 1389, True)),
        ("ldaps://ldap.example.org:1636/", 0, "ldaps", ("ldap.example.org", 1636, False)),
        ("ldap://ldap.example.org", 0, "starttls", ("ldap.example.org", 389, True)),
        ("ldaps://[2001:db8::1]:1636", 0, "ldaps", ("2001:db8::1", 1636, False)),
    ],
)
def test_server_entries(server, port, tls, expected):
    assert node.split_server(server, port, tls) == expected


def certificate(path: pathlib.Path) -> str:
    """Write a key and a certificate for 127.0.0.1 that is its own authority, and return it as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "directory")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(key, hashes.SHA256())
    )
    pem = signed.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(pem + private)
    return pem.decode()


@pytest.fixture
def directory(tmp_path):
    """Return a function that starts a directory server for one connection."""
    listeners = []

    def start(greeting: bytes | None = None) -> tuple[str, str]:
        """Return address and CA; a greeting is the answer to StartTLS."""
        authority = certificate(tmp_path / "server.pem")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "server.pem")
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve():
            plain, _ = listener.accept()
            with plain:
                plain.settimeout(5)
                try:
                    if greeting is not None:
                        assert plain.recv(100) == node.start_tls_request()
                        plain.sendall(greeting)
                    context.wrap_socket(plain, server_side=True).close()
                except OSError:
                    return

        threading.Thread(target=serve, daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}", authority

    yield start
    for listener in listeners:
        listener.close()


# ExtendedResponse with resultCode success, and with protocolError (RFC 4511, section 4.1.9).
ACCEPTED = bytes.fromhex("300c02010178070a010004000400")
REFUSED = bytes.fromhex("300c02010178070a010204000400")


def test_ldaps(directory):
    server, authority = directory()
    assert node.greet(server, 0, "ldaps", authority, 5) is None


def test_starttls(directory):
    server, authority = directory(ACCEPTED)
    assert node.greet(server, 0, "starttls", authority, 5) is None


def test_starttls_refused(directory):
    server, authority = directory(REFUSED)
    assert "it refuses StartTLS" in node.greet(server, 0, "starttls", authority, 5)


def test_another_ca(directory, tmp_path):
    server, _ = directory()
    other = certificate(tmp_path / "other.pem")
    assert node.greet(server, 0, "ldaps", other, 5).startswith(
        f"does not trust the directory server {server}: "
    )


def test_a_ca_that_is_none():
    assert node.greet("127.0.0.1:9", 0, "ldaps", "nonsense", 5).startswith("cannot read the directory's CA")


def test_nobody_there():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert node.greet(f"127.0.0.1:{port}", 0, "ldaps", "", 5).startswith(
        f"cannot reach the directory server 127.0.0.1:{port}: Connection refused"
    )


def test_a_name_that_does_not_resolve(monkeypatch):
    def fail(*_):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(node.socket, "create_connection", fail)
    assert "the name does not resolve" in node.greet("ldap.invalid", 0, "ldaps", "", 5)
