"""Benchmarks: speed, measured against other implementations in one process; no test depends on the results."""
