"""The role certificates, run on a directory of the test's own: what a play makes, keeps and renews."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

ROOT = pathlib.Path(__file__).parents[2]
PLAY = [
    {
        "hosts": "swarm",
        "gather_facts": False,
        "become": True,
        "tasks": [{"ansible.builtin.import_role": {"name": "campus.jupyterhub.certificates"}}],
    }
]
VARIABLES = {
    "certificates_servers": [
        {
            "name": "edge",
            "common_name": "hub.example.org",
            "subject_alt_names": ["DNS:hub.example.org", "IP:192.0.2.1"],
        },
        {"name": "client", "common_name": "client", "usage": "client"},
    ],
    "certificates_secrets": [
        {"name": "crypt_key", "length": 64, "kind": "hex"},
        {"name": "database_password", "length": 32, "kind": "password"},
    ],
}
FILES = {
    "ca.crt",
    "ca.key",
    "edge.crt",
    "edge.key",
    "client.crt",
    "client.key",
    "crypt_key",
    "database_password",
}


class Site:
    """An inventory with two nodes that do not exist."""

    def __init__(self, path: pathlib.Path):
        """Write it to a directory."""
        self.path = path
        self.secrets = path / "secrets"
        (path / "hosts.yml").write_text("swarm: {hosts: {node1: {}, node2: {}}}")
        (path / "play.yml").write_text(yaml.safe_dump(PLAY))

    def command(self, *options: str, **variables) -> list:
        """Return the command of a run."""
        playbook = pathlib.Path(sys.executable).with_name("ansible-playbook")
        extra = self.path / "variables.yml"
        extra.write_text(yaml.safe_dump({**VARIABLES, **variables}))
        return [playbook, "-i", self.path / "hosts.yml", self.path / "play.yml", "-e", f"@{extra}", *options]

    def run(self, *options: str, **variables) -> subprocess.CompletedProcess:
        """Run the role."""
        return subprocess.run(
            self.command(*options, **variables),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    def deploy(self, *options: str, **variables) -> int:
        """Run the role, expect success, and return how many tasks changed something."""
        done = self.run(*options, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return sum(int(count) for count in re.findall(r"changed=(\d+)", done.stdout))

    def certificate(self, name: str) -> x509.Certificate:
        """Return a certificate."""
        return x509.load_pem_x509_certificate((self.secrets / f"{name}.crt").read_bytes())

    def contents(self) -> dict[str, bytes]:
        """Return the content of every file."""
        return {path.name: path.read_bytes() for path in self.secrets.iterdir()}


@pytest.fixture(scope="module")
def deployed(tmp_path_factory) -> dict[str, bytes]:
    """Return the files of a first run after check mode; neither keys nor secrets are in its output."""
    site = Site(tmp_path_factory.mktemp("first"))
    assert site.deploy("--check") == 2
    assert not site.secrets.exists()
    output = site.run("-vvv", "--diff").stdout
    for name in ("crypt_key", "database_password"):
        assert (site.secrets / name).read_text() not in output
    for name in ("ca.key", "edge.key", "client.key"):
        assert (site.secrets / name).read_text().splitlines()[1] not in output
    assert {path.name for path in site.secrets.iterdir()} == FILES
    assert site.secrets.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in site.secrets.iterdir()} == {0o600}
    return site.contents()


@pytest.fixture
def site(tmp_path, deployed) -> Site:
    """Return an inventory that has been deployed."""
    site = Site(tmp_path)
    site.secrets.mkdir(mode=0o700)
    for name, content in deployed.items():
        (site.secrets / name).write_bytes(content)
        (site.secrets / name).chmod(0o600)
    return site


def test_a_second_run_changes_nothing(site, deployed):
    assert site.deploy() == 0
    assert site.deploy("--check") == 0
    assert site.contents() == deployed


def test_the_ca_signs_what_it_should(site):
    authority, edge, client = (site.certificate(name) for name in ("ca", "edge", "client"))
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert (authority.not_valid_after_utc - authority.not_valid_before_utc).days == 3651
    assert (edge.not_valid_after_utc - edge.not_valid_before_utc).days == 826
    names = edge.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example.org"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.0.2.1"]
    for certificate, usage in (
        (edge, ExtendedKeyUsageOID.SERVER_AUTH),
        (client, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        certificate.verify_directly_issued_by(authority)
        assert list(certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [usage]
    key = serialization.load_pem_private_key((site.secrets / "edge.key").read_bytes(), None)
    assert key.public_key() == edge.public_key()


def test_secrets_are_as_asked_for(site):
    assert re.fullmatch(r"[0-9a-f]{64}", (site.secrets / "crypt_key").read_text())
    assert re.fullmatch(r"[0-9A-Za-z]{32}", (site.secrets / "database_password").read_text())


def test_other_names_give_another_certificate_of_the_same_key(site, deployed):
    servers = [{**VARIABLES["certificates_servers"][0], "subject_alt_names": ["DNS:new.example.org"]}]
    assert site.deploy("--check", certificates_servers=servers) == 1
    assert site.contents() == deployed
    assert site.deploy(certificates_servers=servers) == 1
    changed = {name for name, content in site.contents().items() if content != deployed[name]}
    assert changed == {"edge.crt"}
    names = site.certificate("edge").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["new.example.org"]


def test_what_is_about_to_expire_is_issued_anew(site, deployed):
    assert site.deploy(certificates_renew_days=900) == 1
    changed = {name for name, content in site.contents().items() if content != deployed[name]}
    assert changed == {"edge.crt", "client.crt"}


def test_a_renewed_ca_keeps_its_key_and_what_it_has_issued(site, deployed):
    site.deploy(certificates_renew_days=3700, certificates_ca_days=4000, certificates_days=3800)
    assert site.contents()["ca.key"] == deployed["ca.key"]
    assert site.contents()["ca.crt"] != deployed["ca.crt"]
    x509.load_pem_x509_certificate(deployed["edge.crt"]).verify_directly_issued_by(site.certificate("ca"))


def test_an_interrupted_run_is_finished(site, deployed):
    for name in ("ca.crt", "edge.crt", "client.key", "crypt_key"):
        (site.secrets / name).unlink()
    site.deploy()
    for name in ("edge", "client"):
        site.certificate(name).verify_directly_issued_by(site.certificate("ca"))
    kept = {name for name, content in site.contents().items() if content == deployed[name]}
    assert kept >= {"ca.key", "edge.key", "database_password"}
    assert site.deploy() == 0


def test_a_ca_without_its_key_stops_the_run(site):
    (site.secrets / "ca.key").unlink()
    before = site.contents()
    done = site.run()
    assert done.returncode != 0
    assert "without the private key that belongs to it" in " ".join(done.stdout.split())
    assert site.contents() == before


def test_vaulted_files_are_read_and_kept(site):
    password = site.path / "vault-password"
    password.write_text("for the test only")
    vault = pathlib.Path(sys.executable).with_name("ansible-vault")
    vaulted = ["ca.key", "edge.key", "database_password"]
    command = [
        vault,
        "encrypt",
        "--vault-password-file",
        password,
        *(site.secrets / name for name in vaulted),
    ]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "ANSIBLE_CONFIG": ""})
    before = site.contents()
    (site.secrets / "client.crt").unlink()
    site.deploy("--vault-password-file", str(password))
    after = site.contents()
    assert all(after[name] == before[name] for name in [*vaulted, "edge.crt"])
    site.certificate("client").verify_directly_issued_by(site.certificate("ca"))
