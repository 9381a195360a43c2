"""Steps of training by iaat_fast against the amount of work of the authors' released code.

`python -m benchmarks.training --help`
"""
