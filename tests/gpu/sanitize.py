"""Every CUDA kernel on a few hundred elements, for compute-sanitizer; run as a program, not by pytest.

Tensors are made on the CPU and copied over, so that nearly all kernels that run are this library's. Run it with
PYTORCH_NO_CUDA_MEMORY_CACHING=1: each tensor is then an allocation of its own, and an access beyond it is seen.
"""

from __future__ import annotations

import torch

from iaat_fast.ops.native import cuda as native_cuda

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def placed(tensor: torch.Tensor, offset: int = 0) -> torch.Tensor:
    """On the GPU, `offset` elements behind the start of its allocation and right up to its end."""
    flat = torch.cat([tensor.new_zeros(offset), tensor.flatten()])
    return flat.cuda()[offset:].view(tensor.shape)


def images(dtype: torch.dtype, shape: tuple[int, ...], k: int, offset: int) -> int:
    n = shape[0]
    rows = (k * n, *shape[1:])
    radii = torch.linspace(0, 0.2, k * n, dtype=torch.float64)
    radii = placed(radii if dtype is torch.float64 else radii.float())
    x, x_adv = (
        placed(torch.rand(shape).to(dtype), offset),
        placed(torch.rand(rows).to(dtype), offset),
    )
    grad = placed(torch.randn(rows).to(dtype), offset)
    stats, seed, index = (placed(torch.arange(size)) for size in (2, 3, n))
    native_cuda.project_linf(x_adv, x, radii, 0.0, 1.0)
    native_cuda.pgd_step_linf_(x_adv, grad, x, radii, radii, 0.0, 1.0, False, stats)
    native_cuda.pgd_step_linf_(x_adv, grad, x, radii, radii, 0.0, 1.0, True, None)
    native_cuda.random_start_linf(x, radii, seed, index, 0.0, 1.0)
    return 4


def layers(dtype: torch.dtype, shape: tuple[int, ...], offset: int, *, last: bool) -> int:
    def values() -> torch.Tensor:
        drawn = torch.randn(shape).to(dtype)
        if not last:
            return placed(drawn, offset)
        return placed(drawn.permute(0, 2, 3, 1), offset).permute(0, 3, 1, 2)

    x, out, branch = values(), values(), values()
    parameters = torch.randn(2, shape[1], dtype=torch.float64)
    scale, shift = map(placed, parameters if dtype is torch.float64 else parameters.float())
    for other in (None, branch):
        native_cuda.relu_backward_(x, out, other, 0.0, 6.0)
        native_cuda.scale_shift_relu(x, other, scale, shift, 0.0, 6.0)
        native_cuda.scale_shift_relu_backward_(x, out, scale, other, 0.0, 6.0)
    return 6


def logits(dtype: torch.dtype, n: int, classes: int) -> int:
    z, y = placed(torch.randn(3 * n, classes).to(dtype)), torch.randint(classes, (n,))
    y[0] = classes + 7
    index, memory = torch.randperm(2 * n)[:n], placed(torch.rand(2 * n))
    index[-1] = 2 * n
    mask = placed(torch.rand(n) < 0.5)
    native_cuda.ce_cotangent(z, placed(y), False)
    native_cuda.select_epsilon_(memory, placed(index), z, placed(y), 0.1, 0.1, 0.0, 1.0, True, mask)
    return 2


def crops(n: int, height: int, width: int, channels: int) -> int:
    pixels = torch.randint(256, (n, height, width, channels), dtype=torch.uint8)
    index = torch.arange(n)
    index[0] = n
    args = (placed(pixels), placed(index), placed(torch.arange(2)))
    native_cuda.random_crop_flip(*args, 4, True)
    native_cuda.random_crop_flip(*args, 0, False)
    return 2


def main() -> None:
    torch.manual_seed(0)
    calls = 0
    for dtype in DTYPES:
        for shape, k, offset in (
            ((3, 64), 1, 0),
            ((3, 37), 3, 0),
            ((2, 3, 5, 5), 3, 1),
            ((5, 1), 1, 1),
        ):
            calls += images(dtype, shape, k, offset)
        for shape, offset in (((2, 16, 4, 4), 0), ((2, 16, 3, 3), 0), ((3, 5, 3, 3), 1)):
            calls += layers(dtype, shape, offset, last=False)
            calls += layers(dtype, shape, offset, last=True)
        for n, classes in ((9, 10), (3, 100), (2, 1024)):
            calls += logits(dtype, n, classes)
    calls += logits(torch.float32, 2, 1100)
    channels_last = torch.rand(2, 3, 4, 4).contiguous(memory_format=torch.channels_last).cuda()
    radii, seed, index = (placed(t) for t in (torch.rand(2), torch.arange(3), torch.arange(2)))
    native_cuda.random_start_linf(channels_last, radii, seed, index, 0.0, 1.0)
    calls += 1 + crops(3, 8, 8, 3) + crops(2, 9, 7, 1)
    torch.cuda.synchronize()
    print(f"{calls} calls")


if __name__ == "__main__":
    main()
