"""How fast the accounts service answers and creates, with few and with many accounts there.

A real process of files/accounts.py on one core, its files and homes on this machine's disk; the client has
another core. Every round starts the service anew, once for each number of accounts.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import aiohttp

from benchmarks.driver import cpu_seconds
from benchmarks.lab import parse_inventory
from benchmarks.loopback import Accounts, enter_lab
from benchmarks.report import RESULTS, Report

FIRST_UID, STUDENTS, FIRST_COURSE = 100000, 20001, 20003
COURSES = 50


def username(number: int) -> str:
    """Name of an account that is there from the start."""
    return f"user{number:05}"


def fill(accounts: Accounts, size: int) -> None:
    """Write the files as the service leaves them after `size` first logins, each with a role and a course."""
    names = [username(number) for number in range(size)]
    passwd = [
        f"{name}:x:{uid}:{uid}:{name}:/homes/{name}:/usr/sbin/nologin\n"
        for uid, name in enumerate(names, FIRST_UID)
    ]
    group = [f"students:x:{STUDENTS}:\n", f"teachers:x:{STUDENTS + 1}:\n"]
    group += [f"course{number}:x:{FIRST_COURSE + number}:\n" for number in range(COURSES)]
    for number, name in enumerate(names):
        uid, course = FIRST_UID + number, number % COURSES
        group += [
            f"{name}:x:{uid}:\n",
            f"students:x:{STUDENTS}:{name}\n",
            f"course{course}:x:{FIRST_COURSE + course}:{name}\n",
        ]
        home = accounts.homes / name
        if not home.exists():
            home.mkdir(mode=0o700)
            os.chown(home, uid, uid)
    (accounts.state / "passwd").write_text("".join(passwd), encoding="utf-8")
    (accounts.state / "group").write_text("".join(group), encoding="utf-8")


async def rate(
    session: aiohttp.ClientSession,
    method: str,
    requests: list[tuple[str, object]],
    expected: int,
    at_once: int,
) -> float:
    """Send requests, so many at once, and return how many were answered in a second.

    Raises:
        SystemExit: An answer has another status than the expected one.
    """
    waiting = iter(requests)

    async def client() -> None:
        for path, body in waiting:
            async with session.request(method, path, json=body) as answer:
                text = await answer.text()
                if answer.status != expected:
                    raise SystemExit(f"{method} {path}: {answer.status} {text}")

    started = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(client())
    return len(requests) / (time.monotonic() - started)


async def measure(report: Report, url: str, pid: int, token: str, size: int, plan: Plan) -> None:
    """One round with one number of accounts.

    Args:
        report: Takes the rates, unless it is a warm-up.
        url: The service.
        pid: Its process.
        token: Its token.
        size: Number of accounts.
        plan: What is asked.
    """
    case = f"{size:,} accounts"
    async with aiohttp.ClientSession(url, headers={"Authorization": f"Bearer {token}"}) as session:
        for side, method, requests, expected, at_once in plan.parts(size):
            before, started = cpu_seconds(pid), time.monotonic()
            found = await rate(session, method, requests, expected, at_once)
            busy = (cpu_seconds(pid) - before) / (time.monotonic() - started)
            if plan.counts:
                report.add(side, case, found)
                report.measure(side, case, service_cpu=busy)


class Plan:
    """What one round asks.

    Attributes:
        counts: Whether it is no warm-up.
    """

    def __init__(self, number: int, lookups: int, creations: int, at_once: int) -> None:
        """Make the plan of a round.

        Args:
            number: Which round, 0 for the warm-up.
            lookups: Number of lookups of each kind.
            creations: Number of creations.
            at_once: Requests under way at the same time.
        """
        self.counts = number > 0
        self._random = random.Random(number)  # noqa: S311 - which names are asked for is no secret
        self._number, self._lookups, self._creations, self._at_once = number, lookups, creations, at_once

    def names(self, size: int) -> Iterable[str]:
        """Names of accounts that are there."""
        return (username(self._random.randrange(size)) for _ in range(self._lookups))

    def parts(self, size: int) -> list[tuple[str, str, list[tuple[str, object]], int, int]]:
        """The sides: name, method, requests, expected status and how many at once."""
        gets: list[tuple[str, object]] = [(f"/accounts/{name}", None) for name in self.names(size)]
        again: list[tuple[str, object]] = [
            (f"/accounts/{name}", {"groups": ["students", f"course{int(name[4:]) % COURSES}"]})
            for name in self.names(size)
        ]
        new: list[tuple[str, object]] = [
            (f"/accounts/new-{self._number}-{number}", {"groups": ["students", f"course{number % COURSES}"]})
            for number in range(self._creations)
        ]
        single = [(f"{path}-alone", body) for path, body in new[: max(1, self._creations // 4)]]
        return [
            ("lookup", "GET", gets, 200, self._at_once),
            ("lookup at a start", "PUT", again, 200, self._at_once),
            ("creation", "PUT", new, 201, self._at_once),
            ("creation, one at a time", "PUT", single, 201, 1),
        ]


def judge(report: Report, sizes: list[int]) -> None:
    """Note the goals: rates at every size, and the growth from 1,000 to 50,000."""
    for side, bound in (("lookup", 1000), ("lookup at a start", 1000), ("creation", 100)):
        slowest = min(report.median(side, f"{size:,} accounts") for size in sizes)
        report.goal(f"{side}: a second, median at the slowest number of accounts", slowest, ">=", bound)
    few, many = "1,000 accounts", "50,000 accounts"
    for side, cases in report.samples.items():
        if few in cases and many in cases:
            growth = report.median(side, few) / report.median(side, many)
            report.goal(f"{side}: times slower with 50,000 than with 1,000 (medians)", growth, "<=", 1.5)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="benchmarks.accounts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inventory", type=parse_inventory, default="inventories/lab")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 1000, 50000], help="numbers of accounts")
    parser.add_argument("--rounds", type=int, default=10, help="rounds that count, after one that does not")
    parser.add_argument("--lookups", type=int, default=2000, help="lookups of each kind in a round")
    parser.add_argument("--creations", type=int, default=200, help="creations in a round")
    parser.add_argument("--at-once", type=int, default=16, help="requests under way at the same time")
    parser.add_argument("--name", default="accounts", help="name of the result")
    options = parser.parse_args()
    enter_lab(options.inventory)
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[1:] or cores)
    report = Report(
        options.name, "requests/s", more_is_better=True, columns={"service_cpu": ("service CPU", 0.5)}
    )
    report.notes.append(
        f"{options.at_once} requests at once; service and client have a core each; "
        f"a sample is the rate of {options.lookups} lookups or {options.creations} creations"
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    # on the disk and not in memory: a creation is two fsyncs and a directory
    with tempfile.TemporaryDirectory(dir=RESULTS) as directory:
        stores = {size: Accounts(Path(directory, str(size))) for size in options.sizes}
        for number in range(options.rounds + 1):
            plan = Plan(number, options.lookups, options.creations, options.at_once)
            print(f"round {number} of {options.rounds}{' (warm-up)' if not number else ''}", flush=True)
            for size, accounts in stores.items():
                fill(accounts, size)
                with accounts.service(cores[0]) as (url, pid):
                    asyncio.run(measure(report, url, pid, accounts.token, size, plan))
    judge(report, options.sizes)
    report.finish()


if __name__ == "__main__":
    main()
