"""How long does one user wait, and how much of that is Docker itself?

The sides in turn, on one node of the lab, with the same image: Docker alone with our mounts, upstream's
SwarmSpawner without a home (its volumes cannot be one user's NFS volume), ours in both identities, and a
start that runs `chown -R` over the environment.
"""

from __future__ import annotations

import argparse
import contextlib
from typing import Any

from benchmarks.drive import Driver
from benchmarks.lab import Lab, parse_inventory
from benchmarks.report import Report

RAW, UPSTREAM, DIRECT, ROOT, CHOWN = "Docker alone", "upstream", "ours, direct", "ours, root", "chown -R"
USER = "bench-spawn"
# As start scripts did and some do: every file that the image brings becomes the user's; not the home, where
# the storage takes root for nobody. It replaces the image's ENTRYPOINT; the service's arguments follow it.
CHOWN_COMMAND = ["sh", "-c", 'chown -R "$NB_UID:$NB_GID" /opt && exec tini -g -- start.sh "$@"', "sh"]
CASE = "notebook"
TRAITS: dict[str, dict[str, Any]] = {
    DIRECT: {},
    ROOT: {"identity": "root"},
    CHOWN: {"identity": "root", "extra_container_spec": {"command": CHOWN_COMMAND}},
}


class Sides:
    """All sides on one node, for one user.

    Attributes:
        ours: Presses our hub's buttons.
        upstream: Presses upstream's.
    """

    def __init__(self, ours: Driver, upstream: Driver) -> None:
        """Make the user, and let Docker alone start what a start of ours was: the same mounts."""
        self.ours, self.upstream = ours, upstream
        for driver in (ours, upstream):
            driver.ask("users", names=[USER], groups=["students"])
        ours.start(USER)
        ours.ask("spec", name=USER)
        ours.stop(USER)

    def raw(self, **change: Any) -> dict[str, Any]:
        """One start by Docker alone, with another container's specification if asked for."""
        return self.ours.ask("raw", change=change)

    def start(self, side: str, **traits: Any) -> float:
        """One start by a hub, and its stop.

        Returns:
            Seconds from the request to the answer that it is ready.
        """
        driver = self.upstream if side == UPSTREAM else self.ours
        try:
            return driver.start(USER, **TRAITS.get(side, {}), **traits)
        finally:
            driver.stop(USER)


@contextlib.contextmanager
def all_sides(lab: Lab):
    """The sides, on the lab's last node, for the length of a block."""
    constraints = [f"node.hostname=={lab.node}"]
    with lab.hub("ours", constraints) as ours, lab.hub("upstream", constraints) as upstream:
        yield Sides(ours, upstream)


def measure(sides: Sides, report: Report, rounds: int, chown_rounds: int) -> None:
    """All rounds, after one that does not count; then the slow side, which would disturb the others.

    Args:
        sides: They.
        report: Takes the samples.
        rounds: How many count.
        chown_rounds: How many starts of the slow side.
    """
    order = [RAW, UPSTREAM, DIRECT, ROOT]
    for number in range(rounds + 1):
        # whoever follows whom changes with the rounds
        turn = number % len(order)
        for side in order[turn:] + order[:turn]:
            raw = sides.raw() if side == RAW else None
            keep(report, number, side, raw["seconds"] if raw else sides.start(side))
            if raw and number:
                report.measure(RAW, CASE, http=raw["http"], end=raw["end"], states=raw["states"])
    for number in range(chown_rounds):
        keep(report, number + 1, CHOWN, sides.start(CHOWN))


def keep(report: Report, number: int, side: str, seconds: float) -> None:
    """Tell a sample, and keep it unless it is the warm-up's."""
    print(f"{f'round {number}' if number else 'warm-up'}: {side}: {seconds:.2f} s", flush=True)
    if number:
        report.add(side, CASE, seconds)


def judge(report: Report) -> None:
    """Note the goals."""
    for what, share, bound in (("median", 0.5, 1.10), ("p95", 0.95, 1.25)):
        ratio = report.quantile(DIRECT, CASE, share) / report.quantile(RAW, CASE, share)
        report.goal(f"{DIRECT} / {RAW}, {what}", ratio, "<=", bound)
    report.goal(
        f"{DIRECT} / {UPSTREAM}, median", report.median(DIRECT, CASE) / report.median(UPSTREAM, CASE), "<", 1
    )


def main() -> None:
    """Measure, judge and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.spawn", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inventory", type=parse_inventory, default="inventories/lab")
    parser.add_argument("--rounds", type=int, default=24, help="rounds that count")
    parser.add_argument("--chown-rounds", type=int, default=3, help="starts with chown -R")
    options = parser.parse_args()
    lab = Lab(options.inventory)
    report = Report("spawn", "s", **lab.machine())
    report.notes.append(
        f"all on {lab.node}; Docker alone until its port answers, hubs until POST …/server says ready"
    )
    with all_sides(lab) as sides:
        measure(sides, report, options.rounds, options.chown_rounds)
    judge(report)
    report.finish()


if __name__ == "__main__":
    main()
