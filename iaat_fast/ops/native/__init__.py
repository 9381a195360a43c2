"""The native backends: the ops by the compiled kernels of csrc/, on the CPU (`cpu.py`) and on CUDA (`cuda.py`).

`compiled.py` is their common part; `signatures.py` is the table of the kernels' arguments.
"""
