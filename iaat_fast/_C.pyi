"""What the compiled module offers by name; its kernels are called by the table in ops/native/signatures.py."""

from types import ModuleType
from typing import Any

cuda: ModuleType  # in builds with CUDA kernels only

def use_isa(name: str) -> None: ...
def build_info() -> dict[str, Any]: ...
