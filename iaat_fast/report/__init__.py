"""Tables and plots from run folders.

    from iaat_fast.report import plot_run
    from iaat_fast.run_folder import RunFolder

    plot_run(RunFolder("runs/digits-iaat"))

On the command line: `python -m iaat_fast.report RUN...` compares runs, mean and spread over seeds.
"""

from __future__ import annotations

from iaat_fast.report.build import Report, build_report
from iaat_fast.report.plots import plot_run
from iaat_fast.report.summary import Run, RunSummary, closing_table, read_run, summary_table
from iaat_fast.units import attack_name

__all__ = [
    "Report",
    "Run",
    "RunSummary",
    "attack_name",
    "build_report",
    "closing_table",
    "plot_run",
    "read_run",
    "summary_table",
]
