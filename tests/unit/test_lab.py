"""The lab's scripts."""

import subprocess
from pathlib import Path

BUILD_KERNEL = Path(__file__).resolve().parents[2] / "roles/lab/files/build-kernel"


def cached(directory: Path, digest: str) -> str:
    """What `build-kernel cached` prints."""
    command = [str(BUILD_KERNEL), "cached", str(directory), digest]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_without_a_directory_there_is_no_kernel(tmp_path: Path) -> None:
    """A fresh machine has none."""
    assert cached(tmp_path / "none", "abc") == ""


def test_the_newest_kernel_with_these_options_counts(tmp_path: Path) -> None:
    """Versions compare as versions, and other options make another kernel."""
    for name in ["linux-7.9-1-abc", "linux-7.10-1-abc", "linux-7.11-1-other", "linux-7.12-1-abc.new"]:
        (tmp_path / name).touch()
    assert cached(tmp_path, "abc") == str(tmp_path / "linux-7.10-1-abc")
