"""A lecture begins: many users press start at the same moment, here and with upstream's spawner.

On loopback (default): two real hubs, each with a stand-in for Docker's API whose answers take as long as a
real swarm's (docker_api.py), so that the hub is what is measured. With `--lab`: the same two hubs as services
in the lab, against its real swarm; the servers are a few lines of Python in the notebook's image, without
mounts. `--record` measures the real swarm's latencies for the stand-in.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import secrets
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stub import Student

from benchmarks import ROOT
from benchmarks.docker_api import LATENCIES
from benchmarks.drive import Driver
from benchmarks.lab import Lab, parse_inventory
from benchmarks.loopback import ADDRESS, Accounts, enter_lab, free_port, running
from benchmarks.report import RESULTS, Report, median, quantile

SIDES = ["upstream", "ours"]
# A server of a few lines that the hub takes for a notebook; the lab has no memory to reserve for so many.
STUB = {**Student.options("bench")["traits"], "mem_guarantee": 0}
TRAITS: dict[str, dict[str, Any]] = {
    "upstream": STUB,
    "ours": {**STUB, "home_device": "", "home_dir": "/tmp"},  # noqa: S108 - the container's own
}
RECORDED = 40
COLUMNS = {
    "rate": ("starts/s", 0.5),
    "lost": ("lost", 1),
    "hub_cpu": ("hub CPU s", 0.5),
    "health": ("health p99 s", 0.99),
}


@contextlib.contextmanager
def loopback_hub(
    side: str, directory: Path, accounts_url: str, accounts_token: str, latencies: Path
) -> Iterator[Driver]:
    """Run a hub of one side on loopback, with a stand-in for its Docker.

    Args:
        side: `ours` or `upstream`.
        directory: An empty directory for its files.
        accounts_url: The accounts service.
        accounts_token: Its token.
        latencies: What the stand-in takes for its answers.

    Yields:
        Who presses its buttons.
    """
    docker, hub = free_port(), free_port()
    engine, url = f"http://{ADDRESS}:{docker}", f"http://{ADDRESS}:{hub}"
    settings = {
        "side": side,
        "deployed": False,
        "token": secrets.token_hex(16),
        "directory": str(directory),
        "bind_url": url,
        "connect_url": url,
        "accounts_url": accounts_url,
        "accounts_token": accounts_token,
    }
    stand_in = ["-m", "benchmarks.docker_api", "--port", str(docker), "--latencies", str(latencies)]
    config = ["-m", "jupyterhub", "-f", str(ROOT / "benchmarks/jupyterhub_config.py")]
    environment = {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'files'}",
        "BENCH": json.dumps(settings),
        "DOCKER_HOST": engine.replace("http:", "tcp:"),
    }
    with (
        running(stand_in, f"{engine}/version", directory / "docker.log", PYTHONPATH=str(ROOT)),
        running(config, f"{url}/hub/health", directory / "hub.log", **environment) as process,
    ):
        asked = {"hub": f"{url}/hub", "token": settings["token"], "pid": process.pid, "docker": engine}
        with Driver(Driver.script(sys.executable, asked)) as driver:
            yield driver


def lecture(report: Report, side: str, driver: Driver, names: list[str], counts: bool) -> None:
    """One burst: all start, then all stop.

    Args:
        report: Takes the samples.
        side: Whose.
        driver: Presses the buttons.
        names: The users.
        counts: Whether it is no warm-up.
    """
    found = driver.ask("start", names=names, options={"traits": TRAITS[side]})
    driver.ask("stop", names=names)
    rate = len(found["seconds"]) / found["took"]
    print(
        f"  {side}: {len(found['seconds'])} of {len(names)} started in {found['took']:.1f} s, {rate:.1f}/s,"
        f" hub CPU {found['cpu']:.1f} s, health at most {max(found['health']):.2f} s",
        flush=True,
    )
    for name, reason in list(found["failed"].items())[:3]:
        print(f"    {name}: {reason}")
    if not counts:
        return
    case = f"N = {len(names)}"
    report.add(side, case, *found["seconds"].values())
    report.measure(
        side, case, rate=rate, lost=len(found["failed"]), hub_cpu=found["cpu"], health=found["health"]
    )


def run(report: Report, drivers: dict[str, Driver], sizes: list[int], rounds: int) -> None:
    """All bursts, the sides in turn, after a warm-up of each.

    Args:
        report: Takes the samples.
        drivers: By side.
        sizes: Numbers of users.
        rounds: Bursts of each side and size that count.
    """
    names = [f"bench-{number:03}" for number in range(max(sizes))]
    for driver in drivers.values():
        driver.ask("users", names=names, groups=["students"])
    for number in range(rounds + 1):
        # the warm-up is the largest burst: it makes all accounts
        for size in sizes if number else sizes[-1:]:
            print(f"N = {size}, {f'round {number} of {rounds}' if number else 'warm-up'}", flush=True)
            # whoever is first in one round is second in the next
            for side in SIDES if number % 2 else reversed(SIDES):
                lecture(report, side, drivers[side], names[:size], bool(number))


def judge(report: Report) -> None:
    """Note the goals: at the largest N twice upstream's rate, at any N nothing lost and a quick hub."""
    cases = list(report.measures["ours"])
    rates = {side: median(report.measured(side, cases[-1], "rate")) for side in SIDES}
    if rates["upstream"]:
        ratio = rates["ours"] / rates["upstream"]
        report.goal(f"{cases[-1]}: ours / upstream, starts a second", ratio, ">=", 2)
    else:
        report.notes.append(f"{cases[-1]}: upstream lost all starts, so there is no rate to compare with")
    lost = sum(sum(report.measured("ours", case, "lost")) for case in cases)
    report.goal("starts of ours that were lost", lost, "<=", 0)
    for case in cases:
        health = quantile(report.measured("ours", case, "health"), 0.99)
        report.goal(f"{case}: /hub/health of ours, p99 in seconds", health, "<", 1)


def on_loopback(options: argparse.Namespace) -> None:
    """Both hubs here, against the stand-in."""
    enter_lab(options.inventory)
    report = Report(options.name or "burst", "s", columns=COLUMNS)
    report.notes.append(
        "hubs, client and stand-in share the machine's cores; the stand-in's latencies are those of"
        f" {options.latencies.name}; SQLite in memory; no proxy"
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=RESULTS) as path, contextlib.ExitStack() as stack:
        accounts = Accounts(Path(path, "accounts"))
        url, _ = stack.enter_context(accounts.service())
        drivers = {}
        for side in SIDES:
            directory = Path(path, side)
            directory.mkdir()
            drivers[side] = stack.enter_context(
                loopback_hub(side, directory, url, accounts.token, options.latencies)
            )
        run(report, drivers, options.sizes, options.rounds)
    judge(report)
    report.finish()


def in_lab(options: argparse.Namespace) -> None:
    """Both hubs in the lab, against its swarm."""
    lab = Lab(options.inventory)
    report = Report(options.name or "burst-lab", "s", columns=COLUMNS, **lab.machine())
    report.notes.append(
        "all nodes take servers; they share the machine's cores with the hubs; SQLite in memory; no proxy"
    )
    with contextlib.ExitStack() as stack:
        drivers = {side: stack.enter_context(lab.hub(side, [])) for side in SIDES}
        run(report, drivers, options.sizes, options.rounds)
    judge(report)
    report.finish()


def record(options: argparse.Namespace) -> None:
    """Start servers one after the other by Docker alone, and keep what each request and state took."""
    lab = Lab(options.inventory)
    kept: dict[str, Any] = {"engine": lab.machine(), "requests": {}, "starts": [], "ends": []}
    with lab.hub("ours", []) as driver:
        driver.ask("users", names=["bench-record"], groups=["students"])
        driver.start("bench-record", **TRAITS["ours"])
        driver.ask("spec", name="bench-record")
        driver.stop("bench-record")
        for number in range(RECORDED + 1):
            found = driver.ask("raw", change={})
            print(f"start {number} of {RECORDED}: {found['seconds']:.2f} s", flush=True)
            if not number:
                continue
            for kind, seconds in found["requests"].items():
                kept["requests"].setdefault(kind, []).extend(round(one, 4) for one in seconds)
            kept["starts"].append([[state, round(seconds, 3)] for state, seconds in found["states"]])
            kept["ends"].append(round(found["end"], 3))
    options.latencies.write_text(json.dumps(kept) + "\n", encoding="utf-8")


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="benchmarks.burst", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--lab", action="store_true", help="on the deployed cluster instead of loopback")
    parser.add_argument("--record", action="store_true", help="record the cluster's latencies, and no more")
    parser.add_argument("--inventory", type=parse_inventory, default="inventories/lab")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 200], help="numbers of users")
    parser.add_argument("--rounds", type=int, help="rounds that count, after a warm-up (3; on the lab 1)")
    parser.add_argument("--latencies", type=Path, default=LATENCIES, help="what the stand-in takes")
    parser.add_argument("--name", help="name of the result")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 1 if options.lab else 3
    if options.record:
        record(options)
    elif options.lab:
        in_lab(options)
    else:
        on_loopback(options)


if __name__ == "__main__":
    main()
