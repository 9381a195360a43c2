"""Fixtures of the ops' tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from types import FunctionType
from typing import Any

import pytest
import torch

ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """`torch.empty` is filled with NaN (or the largest integer), so that an output left unwritten cannot pass."""
    before = torch.get_deterministic_debug_mode()
    # use_deterministic_algorithms would import Inductor.
    torch.set_deterministic_debug_mode("error")
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The native kernels of every instruction set in turn; skipped where this build or processor lacks it."""
    _C = pytest.importorskip("iaat_fast._C")
    info = _C.build_info()
    if request.param not in info["isas"]:
        pytest.skip(f"{request.param}: not built, or not run by this processor")
    _C.use_isa(request.param)
    yield request.param
    _C.use_isa(info["isa"])


@pytest.fixture(autouse=True, scope="session")
def helpers_find_triton_patched() -> Iterator[None]:
    """Triton's interpreter looks through all of triton.language before every call of a helper, half of a run's time.

    What the kernel that calls has found patched needs it no more: a second time would change nothing.
    """
    if os.environ.get("TRITON_INTERPRET") != "1":
        yield
        return
    from triton import language
    from triton.runtime import interpreter

    patch = getattr(interpreter, "_patch_lang", None)
    # The interpreter of another version of Triton is left as it is.
    if patch is None or not hasattr(interpreter, "_LangPatchScope"):
        yield
        return

    def patch_once(kernel: FunctionType) -> Any:
        seen = kernel.__globals__.values()
        used = [m for m in (language, language.core) if any(value is m for value in seen)]
        if used and not any(language.core.is_builtin(module.load) for module in used):
            return interpreter._LangPatchScope()
        return patch(kernel)

    with pytest.MonkeyPatch.context() as context:
        context.setattr(interpreter, "_patch_lang", patch_once)
        yield
