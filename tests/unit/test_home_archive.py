"""Archives of homes: everything is in them, and no home goes before that was proved."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root
UID, OTHER = 100000, 100001
SPEC = importlib.util.spec_from_file_location(
    "home_archive", Path(__file__).parents[2] / "plugins/modules/home_archive.py"
)
home_archive = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(home_archive)
ArchiveError = home_archive.ArchiveError


class Interrupted(Exception):  # noqa: N818 - what a kill would be
    """The process ended here."""


class Site:
    """Homes of alice and bob, and a directory of archives."""

    def __init__(self, path: Path) -> None:
        """Make it."""
        self.homes, self.dest, self.alice = path / "homes", path / "archive", path / "homes/alice"
        self.outside = path / "outside"
        for directory in (self.homes, self.dest, self.outside, self.alice, self.homes / "bob"):
            directory.mkdir()
        (self.outside / "file").write_text("not alice's")
        (self.homes / "bob/diary").write_text("bob's")
        self.write("notes", "mine")
        os.chown(self.alice, UID, UID)
        os.chown(self.homes / "bob", OTHER, OTHER)

    def write(self, name: str, text: str) -> Path:
        """Write a file of alice's."""
        path = self.alice / name
        path.write_text(text)
        os.chown(path, UID, UID)
        return path

    def run(self, *, check: bool = False, spare: int = 0, uid: int = UID, **asked: bool) -> dict[str, Any]:
        """Do what the module would do for alice."""
        one = {"account": "alice", "uid": uid, "archive": True, "delete": False, **asked}
        return home_archive.work(str(self.homes), str(self.dest), [one], spare, check)

    def state(self, **asked: Any) -> str:
        """Run, and return what became of the home."""
        (home,) = self.run(**asked)["homes"]
        return home["state"]

    @property
    def files(self) -> list[str]:
        """Names of the files beside the archives' lock."""
        return sorted(path.name for path in self.dest.iterdir() if path.name != ".lock")

    def extract(self, to: Path) -> Path:
        """Unpack the last archive as the documentation says."""
        to.mkdir()
        archive = [name for name in self.files if name.endswith(".tar.gz")][-1]
        options = ("--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--same-permissions")
        subprocess.run(["tar", "-xzf", self.dest / archive, *options, "-C", to], check=True)
        return to / "alice"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A storage."""
    return Site(tmp_path)


def snapshot(top: Path) -> dict[str, tuple]:
    """Everything in a directory, as far as an archive can bring it back."""
    found = {}
    for path in [top, *top.rglob("*")]:
        stat = path.lstat()
        if path.is_socket():
            continue
        content = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else None
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in os.listxattr(path, follow_symlinks=False)
        }
        key = os.fsencode(path.relative_to(top))
        found[key] = (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime_ns, content, attributes)
    return found


def fill(site: Site) -> None:
    """Whatever a student may have."""
    (site.alice / "deep/er").mkdir(parents=True)
    site.write("deep/er/file", "deep").chmod(0o4751)
    site.write("line\nbreak: Mode differs", "odd")
    site.write("Jörg * ? $(reboot)", "odd")
    site.write("-rf", "odd")
    (site.alice / os.fsdecode(b"latin-\xe9")).touch()
    os.chown(site.write("a teacher's", "marked"), OTHER, 20001)
    os.link(site.alice / "notes", site.alice / "hard link")
    (site.alice / "out").symlink_to(site.outside)
    (site.alice / "dangling").symlink_to("/nowhere")
    os.mkfifo(site.alice / "fifo")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(site.alice / "socket"))
    with (site.alice / "sparse").open("wb") as file:
        file.truncate(1 << 30)
        file.seek(1 << 29)
        file.write(b"in the midst")
    os.setxattr(site.alice / "notes", "user.grade", b"A")


def test_everything_is_in_the_archive(site: Site, tmp_path: Path) -> None:
    fill(site)
    (site.alice / "sparse").unlink()
    before = snapshot(site.alice)
    assert site.state() == "archived"
    assert snapshot(site.alice) == before
    back = site.extract(tmp_path / "back")
    assert snapshot(back) == before
    assert (back / "notes").stat().st_ino == (back / "hard link").stat().st_ino
    archive, checksum = site.files
    assert checksum == f"{archive}.sha256"
    subprocess.run(["sha256sum", "--check", "--strict", checksum], cwd=site.dest, check=True)
    assert {path.stat().st_mode & 0o777 for path in site.dest.iterdir()} == {0o600}


def test_a_gigabyte_of_nothing_takes_none(site: Site) -> None:
    fill(site)
    assert site.run(check=True)["needed"] < 1 << 20
    assert site.state() == "archived"
    assert (site.dest / site.files[0]).stat().st_size < 1 << 20


def test_a_home_that_has_not_changed_is_archived_once(site: Site) -> None:
    assert site.run()["changed"]
    files = site.files
    again = site.run()
    assert (again["changed"], again["needed"]) == (False, 0)
    assert again["homes"] == [{"account": "alice", "state": "current", "archive": files[0]}]
    site.write("notes", "once more")
    assert site.state() == "archived"
    assert len(site.files) == 4


def test_check_changes_nothing(site: Site) -> None:
    assert site.run(check=True)["changed"]
    assert site.state(check=True, delete=True) == "deleted"
    assert site.files == []
    assert site.alice.is_dir()


def test_another_account_of_a_longer_name_is_another(site: Site) -> None:
    (site.dest / "alice-x-20261124T204811Z.tar.gz").touch()
    (site.dest / "alice-20261124T204811Z.tar.gz.old").touch()
    assert site.state(check=True) == "archived"


def test_a_home_goes_with_a_verified_archive_only(site: Site, tmp_path: Path) -> None:
    fill(site)
    (site.alice / "sparse").unlink()
    before = snapshot(site.alice)
    with pytest.raises(ArchiveError, match="has no archive"):
        site.run(archive=False, delete=True)
    site.run()
    assert site.state(archive=False, delete=True) == "deleted"
    assert sorted(path.name for path in site.homes.iterdir()) == ["bob"]
    assert (site.homes / "bob/diary").read_text() == "bob's"
    assert (site.outside / "file").read_text() == "not alice's"
    assert snapshot(site.extract(tmp_path / "back")) == before
    assert site.run(archive=False, delete=True)["changed"] is False
    assert site.state() == "absent"


def test_archived_and_removed_in_one_run(site: Site) -> None:
    assert site.state(delete=True) == "deleted"
    assert len(site.files) == 2
    assert not site.alice.exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda home: (home / "new").touch(),
        lambda home: (home / "notes").write_text("more"),
        lambda home: (home / "notes").unlink(),
        lambda home: (home / "notes").chmod(0o600),
        lambda home: (home / "notes").rename(home / "renamed"),
        lambda home: os.setxattr(home / "notes", "user.grade", b"B"),
    ],
)
def test_a_home_that_has_changed_since_stays(site: Site, change) -> None:
    site.run()
    change(site.alice)
    with pytest.raises(ArchiveError, match="has changed since its last archive"):
        site.run(archive=False, delete=True)
    assert site.alice.is_dir()


def test_what_a_clock_hides_is_seen_all_the_same(site: Site, monkeypatch) -> None:
    """The content is compared: with times that say nothing has changed, a home still stays."""
    site.run()
    monkeypatch.setattr(home_archive.Home, "is_archived", lambda *_: True)
    stat = (site.alice / "notes").stat()
    (site.alice / "notes").write_text("MINE")
    os.utime(site.alice / "notes", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ArchiveError, match="notes: Contents differ"):
        site.run(archive=False, delete=True)
    (site.alice / "notes").write_text("mine")
    os.utime(site.alice / "notes", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    stat = site.alice.stat()
    (site.alice / "new").touch()
    os.utime(site.alice, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ArchiveError, match=r"has 3 entries and .* has 2"):
        site.run(archive=False, delete=True)
    assert site.alice.is_dir()


@pytest.mark.parametrize("damage", ["archive", "checksum", "no checksum", "cut"])
def test_a_damaged_archive_is_none(site: Site, damage: str) -> None:
    site.run()
    archive, checksum = (site.dest / name for name in site.files)
    if damage == "archive":
        with archive.open("r+b") as file:
            file.seek(50)
            file.write(b"\0")
    elif damage == "cut":
        os.truncate(archive, archive.stat().st_size - 1)
    elif damage == "checksum":
        checksum.write_text(f"{'0' * 64}  {archive.name}\n")
    else:
        checksum.unlink()
    with pytest.raises((ArchiveError, FileNotFoundError)):
        site.run(archive=False, delete=True)
    assert site.alice.is_dir()


def test_a_file_that_changes_meanwhile(site: Site, monkeypatch) -> None:
    """There is no archive then, not even half a one."""
    original = home_archive.Home.compare

    def compare(self, archive):
        site.write("notes", "changed meanwhile")
        original(self, archive)

    monkeypatch.setattr(home_archive.Home, "compare", compare)
    with pytest.raises(ArchiveError, match=r"notes: (Mod time|Size|Contents) differ"):
        site.run()
    assert site.files == []


# Every call that makes something last, by where it is looked up.
STEPS = ["os.fsync", "Path.rename", "Path.unlink", "Home.compare", "run"]


@pytest.mark.parametrize("step", STEPS)
def test_interrupted_anywhere_and_done_again(site: Site, monkeypatch, tmp_path: Path, step: str) -> None:
    """However often it is cut off before or behind a step, the end is the same, and nothing is lost."""
    monkeypatch.setattr(home_archive, "QUIET_SECONDS", 0)
    before = snapshot(site.alice)
    module, _, name = step.rpartition(".")
    target = {"os": os, "Path": Path, "Home": home_archive.Home, "": home_archive}[module]
    original = getattr(target, name)
    time.sleep(3)  # the home is quiet from here on
    for at in range(100):
        calls = iter(range(1000))

        def cut(*args: Any, at=at, calls=calls, **kwargs: Any) -> Any:
            number = next(calls)
            if number == at // 2 and at % 2 == 0:
                raise Interrupted
            result = original(*args, **kwargs)
            if number == at // 2:
                raise Interrupted
            return result

        monkeypatch.setattr(target, name, cut)
        try:
            site.run(delete=True)
            break
        except Interrupted:
            pass
        except FileExistsError:
            time.sleep(1)
        finally:
            monkeypatch.setattr(target, name, original)
        if site.alice.exists():
            assert snapshot(site.alice) == before
    else:
        pytest.fail("it never came to an end")
    site.run(delete=True)
    assert sorted(path.name for path in site.homes.iterdir()) == ["bob"]
    assert [name for name in site.files if name.endswith(".part")] == []
    assert snapshot(site.extract(tmp_path / "back")) == before


def test_two_runs_at_once(site: Site) -> None:
    with home_archive.alone(site.dest), pytest.raises(ArchiveError, match="Another run"):
        site.run()
    assert site.files == []


def test_space_is_looked_at_before(site: Site) -> None:
    with pytest.raises(ArchiveError, match=r"may take 0 MiB, and 999999999 MiB have to stay free"):
        site.run(spare=999999999, check=True)
    site.run()
    assert site.state(spare=999999999) == "current"


@pytest.mark.parametrize("kind", ["link", "file", "another's"])
def test_what_is_not_the_accounts_home_is_left_alone(site: Site, kind: str) -> None:
    site.alice.rename(site.outside / "alice")
    if kind == "link":
        site.alice.symlink_to(site.outside / "alice")
    elif kind == "file":
        site.alice.touch()
    else:
        (site.outside / "alice").rename(site.alice)
        os.chown(site.alice, OTHER, OTHER)
    with pytest.raises(ArchiveError, match=r"no directory|belongs to UID 100001"):
        site.run(delete=True)
    assert site.files == []
    assert site.alice.exists()


def make_deep(site: Site, name: str, depth: int) -> None:
    """Make directories within directories."""
    here = os.open(site.alice, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir(name, dir_fd=here)
        below = os.open(name, os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)


def test_more_directories_than_python_goes_down(site: Site) -> None:
    make_deep(site, "d", 1500)
    assert site.state(delete=True) == "deleted"
    assert not site.alice.exists()


def test_a_path_that_is_too_long_is_told(site: Site) -> None:
    """GNU tar can archive it and not compare it."""
    make_deep(site, "deeper", 700)
    with pytest.raises(ArchiveError, match="File name too long") as raised:
        site.run(delete=True)
    assert len(str(raised.value)) < 400
    assert site.alice.is_dir()
    assert site.files == []
