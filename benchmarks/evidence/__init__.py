"""Is a radius per sample beyond the trade-off of fixed radii, and how do the methods compare? Runs that answer it.

`python -m benchmarks.evidence GRID` trains and evaluates the runs of a grid (`grid`, `grids`, `jobs`), reads what they
have come to (`measured`), tests the claim (`frontier`) and writes its tables and figures (`write`), or a table of
methods (`comparison`). For a GPU that is at hand for minutes, `schedule` finds the epochs that fit, and `pack` leaves
small files to continue from.
"""
