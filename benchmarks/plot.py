"""Draw the last results, one SVG for each question, and copy their tables into README.md.

Reads build/bench/NAME.json. A question without a result there keeps its plot and its tables.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pygal
from pygal.style import Style

from benchmarks.report import RESULTS, Report, figure, median

HERE = Path(__file__).parent
README, PLOTS = HERE / "README.md", HERE / "plots"
BEGIN, END = "<!-- figures -->", "<!-- /figures -->"
TITLE = "### "
STYLE = Style(
    background="white",
    plot_background="white",
    font_family="Helvetica, Arial, sans-serif",
    title_font_size=20,
    legend_font_size=15,
    label_font_size=14,
    major_label_font_size=14,
    value_font_size=13,
    colors=("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"),  # told apart by the colour-blind, too
    value_colors=("black",) * 5,
)


def chart(title: str, labels: list[str], **options: object) -> pygal.Bar:
    """An empty bar chart with its values printed.

    Args:
        title: What it shows, with the unit.
        labels: Of the groups of bars.
        options: Further ones of pygal.
    """
    bars = pygal.Bar(
        style=STYLE,
        js=[],
        no_prefix=True,
        title=title,
        width=900,
        height=480,
        margin=25,
        legend_at_bottom=True,
        legend_at_bottom_columns=3,
        truncate_legend=-1,
        print_values=True,
        print_values_position="top",
        formatter=lambda value: "" if value is None else figure(value),
        **options,
    )
    bars.x_labels = labels
    return bars


def spawn(report: Report) -> pygal.Bar:
    """Median and p95 of each side."""
    bars = chart("One user's start, in seconds", list(report.samples))
    for name, share in (("median", None), ("p95", 0.95)):
        bars.add(
            name,
            [
                report.quantile(side, case, share) if share else report.median(side, case)
                for side, cases in report.samples.items()
                for case in cases
            ],
        )
    return bars


def medians(report: Report, title: str, **options: object) -> pygal.Bar:
    """Median of each side, in groups by case."""
    cases = list(dict.fromkeys(case for found in report.samples.values() for case in found))
    bars = chart(title, cases, **options)
    for side, found in report.samples.items():
        bars.add(side, [median(found[case]) if case in found else None for case in cases])
    return bars


def files(report: Report) -> pygal.Bar:
    """Seconds by the image's number of files."""
    return medians(
        report, "A start, in seconds (median, logarithmic), by files in the image", logarithmic=True
    )


def burst(report: Report) -> pygal.Bar:
    """Starts a second by N, and what a start costs the hub on the axis to the right."""
    cases = list(report.measures["ours"])
    where = "the lab's swarm" if report.name.endswith("lab") else "a stand-in for Docker"
    bars = chart(f"N users press start at once, against {where}", cases)
    bars.y_title = "starts a second"
    for side in report.measures:
        rates = [median(report.measured(side, case, "rate")) for case in cases]
        bars.add(f"{side}: starts a second", rates)
    for side in report.measures:
        spent = [median(report.measured(side, case, "hub_cpu")) for case in cases]
        bars.add(f"{side}: hub CPU, s (right axis)", spent, secondary=True)
    return bars


def accounts(report: Report) -> pygal.Bar:
    """Rates by the number of accounts."""
    return medians(report, "Accounts service, requests a second on one core (median)")


QUESTIONS: dict[str, Callable[[Report], pygal.Bar]] = {
    "spawn": spawn,
    "files": files,
    "burst": burst,
    "burst-lab": burst,
    "accounts": accounts,
}


def svg(bars: pygal.Bar) -> str:
    """The chart without pygal's scripts and comments, which have URLs and the date."""
    ET.register_namespace("", "http://www.w3.org/2000/svg")
    root = ET.fromstring(bars.render())  # noqa: S314 - our own
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}script"):
                parent.remove(child)
    return ET.tostring(root, encoding="unicode") + "\n"


def table(rows: list[list[str]]) -> str:
    """Rows as a Markdown table, the first one its head, the first two columns to the left."""
    rule = ["---" if column < 2 else "---:" for column in range(len(rows[0]))]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def section(report: Report) -> str:
    """A result as Markdown: plot, machine, notes, tables."""
    machine = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in report.machine.items())
    return "\n\n".join(
        [
            f"{TITLE}{report.name}",
            f"![{report.name}](plots/{report.name}.svg)",
            f"{report.started} · {machine}",
            *report.notes,
            table(report.rows()),
            table(report.goal_rows()),
        ]
    )


def kept(figures: str) -> dict[str, str]:
    """The sections that are there, by question."""
    parts = [part.strip() for part in figures.split(TITLE)[1:]]
    return {part.split("\n")[0]: TITLE + part for part in parts}


def main(results: Path = RESULTS, readme: Path = README, plots: Path = PLOTS) -> None:
    """Draw what there is.

    Raises:
        SystemExit: There is nothing.
    """
    found = {name: results / f"{name}.json" for name in QUESTIONS}
    reports = {name: Report.load(path) for name, path in found.items() if path.exists()}
    if not reports:
        raise SystemExit(f"There are no results in {results}; run `make bench` first.")
    plots.mkdir(exist_ok=True)
    for name, report in reports.items():
        (plots / f"{name}.svg").write_text(svg(QUESTIONS[name](report)), encoding="utf-8")
    text = readme.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    old, _, after = rest.partition(END)
    sections = {**kept(old), **{name: section(report) for name, report in reports.items()}}
    body = "\n\n".join([BEGIN, *(sections[name] for name in QUESTIONS if name in sections), END])
    readme.write_text(before + body + after, encoding="utf-8")
    print(f"{plots}, {readme}")


if __name__ == "__main__":
    main()
