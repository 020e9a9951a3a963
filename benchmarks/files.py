"""Does a start take longer with a larger image?

The notebook image with 5,000, 50,000 and 200,000 more files in its environment, on one node of the lab. Ours
in both identities must not notice; the start that runs `chown -R` is shown beside them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.lab import Lab, parse_inventory
from benchmarks.report import Report
from benchmarks.spawn import CHOWN, DIRECT, ROOT, Sides, all_sides

CONTEXT = Path(__file__).with_name("files-image")
TIMEOUT = 5400


def name_of(size: int) -> str:
    """Name of the image with so many files."""
    return f"bench-{size}-files"


def deploy(lab: Lab, sizes: list[int]) -> None:
    """Build the images, and bring them to the node; the largest takes minutes to unpack there."""
    host = lab.cluster.groups["swarm"][-1]
    images = [
        {
            "name": name_of(size),
            "context": str(CONTEXT),
            "parent": "notebook",
            "args": {"FILES": str(size)},
            "hosts": [smallest_group(lab, host)],
        }
        for size in sizes
    ]
    print(
        f"Building images of {', '.join(f'{size:,}' for size in sizes)} files and bringing them to {host}",
        flush=True,
    )
    extra = json.dumps({"images_extra": images})
    lab.cluster.playbook("site.yml", "--extra-vars", extra, timeout=TIMEOUT)


def smallest_group(lab: Lab, host: str) -> str:
    """The smallest group of the inventory that has the host in it."""
    groups = {name: hosts for name, hosts in lab.cluster.groups.items() if host in hosts}
    return min(groups, key=lambda name: len(groups[name]))


def measure(sides: Sides, report: Report, images: dict[int, str], rounds: int, chown_rounds: int) -> None:
    """All rounds, after one that does not count; then the slow side, which would disturb the others.

    Args:
        sides: They.
        report: Takes the samples.
        images: References by number of files.
        rounds: How many count.
        chown_rounds: How many starts of the slow side with each image.
    """
    turns = [(number, [DIRECT, ROOT]) for number in range(rounds + 1)]
    turns += [(number + 1, [CHOWN]) for number in range(chown_rounds)]
    for number, wanted in turns:
        for size, image in images.items():
            for side in wanted:
                seconds = sides.start(side, image=image)
                print(f"round {number}: {size:,} files, {side}: {seconds:.2f} s", flush=True)
                if number:
                    report.add(side, f"{size:,} files", seconds)


def judge(report: Report, sizes: list[int]) -> None:
    """Note the goals: how much longer with the most files than with the fewest, in percent."""
    few, many = f"{min(sizes):,} files", f"{max(sizes):,} files"
    for side in (DIRECT, ROOT):
        growth = report.median(side, many) / report.median(side, few) - 1
        report.goal(f"{side}: percent longer with {many} than with {few} (medians)", growth * 100, "<", 5)


def main() -> None:
    """Measure, judge and write."""
    parser = argparse.ArgumentParser(prog="benchmarks.files", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inventory", type=parse_inventory, default="inventories/lab")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[5000, 50000, 200000], help="numbers of files"
    )
    parser.add_argument("--rounds", type=int, default=8, help="rounds that count")
    parser.add_argument("--chown-rounds", type=int, default=1, help="how many of them have the chown side")
    options = parser.parse_args()
    lab = Lab(options.inventory)
    report = Report("files", "s", **lab.machine())
    report.notes.append(f"all starts on {lab.node}; files of one line each, a hundred to a directory")
    deploy(lab, options.sizes)
    images = {size: lab.image(name_of(size)) for size in options.sizes}
    with all_sides(lab) as sides:
        measure(sides, report, images, options.rounds, options.chown_rounds)
    judge(report, options.sizes)
    report.finish()


if __name__ == "__main__":
    main()
