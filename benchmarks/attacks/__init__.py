"""PGD by iaat_fast against plain loops and other libraries: the same attack, checked, then timed side by side.

`python -m benchmarks.attacks --help`
"""
