"""Is a radius per sample beyond the trade-off of fixed radii? Runs that answer it, and the test of the claim.

`python -m benchmarks.evidence digits|cifar10` trains and evaluates the runs (`grids`, `jobs`), tests the claim
(`frontier`) and writes its tables and figures (`write`). For a GPU that is at hand for minutes, `schedule` finds the
epochs that fit, and `pack` leaves small files to continue from.
"""
