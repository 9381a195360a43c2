"""The Triton kernels; `ops/triton.py` launches them.

Their arithmetic is that of reference.py and primitives.py, rounding for rounding. They are compiled without contraction
into fused multiply-adds (`enable_fp_fusion=False`), and with TRITON_INTERPRET=1 they run on CPU tensors, in NumPy. What
decides the code (candidates, classes, channels, which path) is a `constexpr`; the interpreter of Triton 3.6 cannot
count a loop by anything else.
"""
