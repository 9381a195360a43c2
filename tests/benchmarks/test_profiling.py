"""Kernels and operators are told apart by their names: those of recorded profiles, and those of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from benchmarks.attacks.profiling import GAPS, KINDS, OTHER, by_kind, device_time, kind_of

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"

NAMES = {
    "sm90_xmma_dgrad_implicit_gemm_bf16bf16_bf16f32_f32_nhwckrsc_nhwc_tilesize128x64x32_cudnn": "convolutions",
    "void precomputed_convolve_sgemm<__nv_bfloat16, 128, 6, 7, 3, 3, 5, 1, false>(int)": "convolutions",
    "triton_tem_fused_convolution_3": "convolutions",
    "mkldnn::_convolution_pointwise": "convolutions",
    "aten::mkldnn_convolution_backward": "convolutions",
    "void cudnn::engines_precompiled::nhwcToNchwKernel<__nv_bfloat16, float, true>(int)": "copies",
    "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda()>": "copies",
    "Memcpy DtoD (Device -> Device)": "copies",
    "aten::copy_": "copies",
    "nvjet_sm90_tst_32x512_64x3_1x2_h_bz_NNN": "products",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x2>": "products",
    "aten::addmm": "products",
    "void at::native::reduce_kernel<512, 1, at::native::ReduceOp<float, MeanOps>>": "reductions",
    "void iaat::cuda::ce_cotangent_kernel<1, float>": "reductions",
    "triton_per_fused_mean_4": "reductions",
    "aten::_log_softmax_backward_data": "reductions",
    "void at::native::vectorized_elementwise_kernel<8, at::native::CUDAFunctor_add>": "elementwise",
    "void at::native::batch_norm_transform_input_channels_last_kernel<4>": "elementwise",
    "triton_poi_fused__to_copy_convolution_relu_2": "elementwise",
    "iaat_fast::pgd_step_linf_": "elementwise",
    "aten::threshold_backward": "elementwise",
    "aten::empty": OTHER,
    "cudaLaunchKernel": OTHER,
}


@pytest.mark.parametrize("name", NAMES)
def test_the_kind_of_a_name(name: str) -> None:
    assert kind_of(name) == NAMES[name]


def profiles() -> dict[str, Any]:
    """Profiles of the records made on an H100: the kernels that took longest, [name, us, calls]."""
    known = {}
    for record in ("training/h100-1", "attacks/h100-2"):
        content = json.loads((RESULTS / f"{record}.json").read_text())
        known |= {name: found for name, found in content.items() if name.endswith("/profile")}
    return known


@pytest.mark.parametrize("name", profiles())
def test_kernels_that_ran_on_a_gpu_have_a_kind(name: str) -> None:
    found = profiles()[name]
    sums = by_kind((kernel, microseconds) for kernel, microseconds, _ in found["rows"])
    total = 1e3 * found["device_ms"]
    assert sums[OTHER] == 0
    # Most of the time is there: the rest is of kernels too short for the record.
    assert 0.9 * total < sum(sums.values()) < 1.001 * total
    # A PGD step of these networks is convolutions first, whatever the engine.
    assert max(sums, key=sums.__getitem__) == "convolutions"


def test_a_call_on_the_cpu_by_kind() -> None:
    x, weight = torch.rand(8, 16, 64, 64), torch.rand(16, 16, 3, 3)
    found = device_time(lambda: F.conv2d(x, weight).relu(), x.device)
    assert set(found.kinds) == {*KINDS, OTHER, GAPS}
    assert found.kinds["convolutions"] > found.kinds["products"] == 0
    assert found.kinds["elementwise"] > 0
    assert found.device_s == pytest.approx(sum(found.kinds[kind] for kind in (*KINDS, OTHER)))
    assert found.kinds[GAPS] == pytest.approx(found.wall_s - found.device_s)
    assert found.wall_s > 0
