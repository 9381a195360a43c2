"""Fixtures of the ops' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

ISAS = ("baseline", "avx2", "avx512")


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """`torch.empty` is filled with NaN (or the largest integer), so that an output left unwritten cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    yield
    torch.use_deterministic_algorithms(before)


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
