"""Samples of a benchmark: their figures, the goals, a table, and a JSON file with all of it."""

from __future__ import annotations

import json
import math
import operator
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import ROOT

RESULTS = ROOT / "build/bench"
COMPARE = {"<=": operator.le, ">=": operator.ge, "<": operator.lt}


def quantile(samples: list[float], share: float) -> float:
    """Smallest sample that at least a share of all samples does not exceed: the nearest rank.

    Of few samples a high quantile is simply the largest one; nothing is interpolated.

    Args:
        samples: At least one number, in any order.
        share: Between 0 and 1, such as 0.95.

    Raises:
        ValueError: There is no sample.
    """
    if not samples:
        raise ValueError("no sample")
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


def median(samples: list[float]) -> float:
    """The middle sample, or the mean of the two in the middle.

    Raises:
        ValueError: There is no sample.
    """
    if not samples:
        raise ValueError("no sample")
    ordered, half = sorted(samples), len(samples) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


@dataclass(frozen=True)
class Goal:
    """One goal and what became of it.

    Attributes:
        name: What is compared with what.
        value: What was measured.
        bound: What it had to reach, such as "<= 1.1".
        met: Whether it did.
    """

    name: str
    value: float
    bound: str
    met: bool


def machine(**more: Any) -> dict[str, Any]:
    """The machine that measures.

    Args:
        more: What else is to be known, such as the engine's version on the nodes.
    """
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_at_start": round(os.getloadavg()[0], 2),
        **more,
    }


class Report:
    """The samples of one benchmark.

    Attributes:
        samples: Numbers by side and case, such as `samples["direct"]["5000 files"]`.
        measures: What else was seen, by side and case: a dict of names and lists.
        goals: What had to be reached.
        notes: Sentences on how it was measured.
    """

    def __init__(
        self,
        name: str,
        unit: str,
        *,
        more_is_better: bool = False,
        columns: dict[str, tuple[str, float]] | None = None,
        **about: Any,
    ) -> None:
        """Start without samples.

        Args:
            name: Name of the benchmark and its file.
            unit: Unit of the samples, such as "s".
            more_is_better: Whether a larger sample is the better one.
            columns: Measures that the table has besides the samples: heading and quantile by name.
            about: What else is to be known of the machine.
        """
        self.name = name
        self.unit = unit
        self.more_is_better = more_is_better
        self.columns = columns or {}
        self.machine = machine(**about)
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self.samples: dict[str, dict[str, list[float]]] = {}
        self.measures: dict[str, dict[str, dict[str, Any]]] = {}
        self.goals: list[Goal] = []
        self.notes: list[str] = []

    def add(self, side: str, case: str, *values: float) -> None:
        """Keep samples of one side in one case."""
        self.samples.setdefault(side, {}).setdefault(case, []).extend(values)

    def measure(self, side: str, case: str, **values: Any) -> None:
        """Keep what is no sample: each value goes to the end of the list of its name."""
        kept = self.measures.setdefault(side, {}).setdefault(case, {})
        for name, value in values.items():
            kept.setdefault(name, []).append(value)

    def measured(self, side: str, case: str, name: str) -> list[float]:
        """All numbers of one measure, in one list, also where a round had many."""
        values = self.measures.get(side, {}).get(case, {}).get(name, [])
        return [number for value in values for number in (value if isinstance(value, list) else [value])]

    def median(self, side: str, case: str) -> float:
        """The middle of a side's samples in one case."""
        return median(self.samples[side][case])

    def quantile(self, side: str, case: str, share: float) -> float:
        """A quantile of a side's samples in one case."""
        return quantile(self.samples[side][case], share)

    def goal(self, name: str, value: float, relation: str, bound: float) -> None:
        """Note a goal and whether it is met.

        Args:
            name: What is compared with what.
            value: What was measured.
            relation: `<=`, `>=` or `<`.
            bound: What the value has to be in this relation to.
        """
        self.goals.append(Goal(name, value, f"{relation} {bound:g}", COMPARE[relation](value, bound)))

    def rows(self) -> list[list[str]]:
        """The table: a line for each side and case, below the headings."""
        # The bad end is that of the slow ones, whatever is counted.
        ends = {"p5": 0.05, "p1": 0.01} if self.more_is_better else {"p95": 0.95, "p99": 0.99}
        head = ["side", "case", "samples", *(f"{name} {self.unit}" for name in ("median", *ends))]
        rows = [[*head, *(heading for heading, _ in self.columns.values())]]
        for side, cases in self.samples.items():
            for case, values in cases.items():
                shown = ["-"] * (1 + len(ends))
                if values:
                    shown = [
                        figure(median(values)),
                        *(figure(quantile(values, end)) for end in ends.values()),
                    ]
                for name, (_, share) in self.columns.items():
                    shown.append(figure(quantile(self.measured(side, case, name), share)))
                rows.append([side, case, str(len(values)), *shown])
        return rows

    def goal_rows(self) -> list[list[str]]:
        """The goals' table."""
        return [
            ["goal", "bound", "measured", "met"],
            *([one.name, one.bound, figure(one.value), "yes" if one.met else "no"] for one in self.goals),
        ]

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {**vars(self), "goals": [asdict(goal) for goal in self.goals]}

    @classmethod
    def load(cls, path: Path) -> Report:
        """Read what `finish` wrote."""
        found = json.loads(path.read_text(encoding="utf-8"))
        report = cls.__new__(cls)
        vars(report).update(found, goals=[Goal(**goal) for goal in found["goals"]])
        return report

    def finish(self, directory: Path = RESULTS) -> Path:
        """Print the tables and write the file.

        Returns:
            The file.
        """
        print(f"\n{text_table(self.rows())}")
        if self.goals:
            print(f"\n{text_table(self.goal_rows())}")
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{self.name}.json"
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", encoding="utf-8")
        print(f"\n{path}")
        return path


def figure(value: float) -> str:
    """A number with three significant digits, and whole from a hundred on."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def text_table(rows: list[list[str]]) -> str:
    """Rows as columns of text, the first two to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )
