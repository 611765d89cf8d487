"""Fails when too few branches are covered: `branches.py PERCENT COVERAGE_JSON`.

`coverage report` mixes statements and branches in one figure, so many plain lines can hide an untested `else`. This
counts branches alone, for all files together, and names the files that pull the figure down.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def percent(summary: Mapping[str, Any]) -> float:
    """Covered branches of all branches, in per cent; 100 where there is none."""
    total: int = summary["num_branches"]
    return 100.0 * summary["covered_branches"] / total if total else 100.0


def main(wanted: float, report: Path) -> int:
    """Print the figures; 1 if `wanted` per cent is missed or there was nothing to measure."""
    data = json.loads(report.read_text())
    reached = percent(data["totals"])
    for name, file in sorted(data["files"].items(), key=lambda item: percent(item[1]["summary"])):
        if percent(file["summary"]) < wanted:
            print(f"  {percent(file['summary']):5.1f} %  {name}")
    print(f"branches covered: {reached:.1f} % of {data['totals']['num_branches']}, wanted {wanted:g} %")
    return 0 if reached >= wanted and data["totals"]["num_branches"] else 1


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), Path(sys.argv[2])))
