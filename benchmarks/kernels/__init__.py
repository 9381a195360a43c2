"""The ops of `iaat_fast.ops`, measured against a device copy, eager torch and torch.compile.

`python -m benchmarks.kernels --help`
"""
