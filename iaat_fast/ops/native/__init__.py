"""The ops by the kernels of csrc/: on the CPU (`cpu.py`) and on CUDA (`cuda.py`).

Their common part is `compiled.py`; `signatures.py` is the one table of the kernels' arguments.
"""
