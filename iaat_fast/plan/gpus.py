"""Published peaks of GPUs: what a modelled time starts from."""

from __future__ import annotations

from dataclasses import dataclass

from iaat_fast.command_line import nearest


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """A GPU's published figures, per second: dense operations by precision, and bytes.

    bf16 and tf32 are None where its matrix units have no such format. `link` is the bandwidth to the other GPUs of
    its node, one way.
    """

    name: str
    fp16: float
    bf16: float | None
    tf32: float | None
    fp32: float
    bandwidth: float
    memory: float
    link: float

    def peak(self, precision: str) -> float:
        """Operations per second of convolutions asked for in fp32, tf32, bf16 or fp16.

        In fp32 torch lets cuDNN use TF32 unless told otherwise, so that is the peak where there is one.
        """
        if precision == "fp16":
            return self.fp16
        if precision == "bf16" and self.bf16 is not None:
            return self.bf16
        return self.fp32 if self.tf32 is None else self.tf32


# NVIDIA's data sheets of the SXM modules; where a sheet gives matrix rates with sparsity, half of them. NVLink's
# figures count both ways.
GPUS: dict[str, Gpu] = {
    # "NVIDIA V100 Tensor Core GPU", January 2020: the SXM2 module, in its larger version.
    "v100": Gpu(
        name="V100 SXM2 32 GB",
        fp16=125e12,
        bf16=None,
        tf32=None,
        fp32=15.7e12,
        bandwidth=900e9,
        memory=32e9,
        link=150e9,
    ),
    # "NVIDIA A100 Tensor Core GPU", June 2021.
    "a100": Gpu(
        name="A100 SXM 80 GB",
        fp16=312e12,
        bf16=312e12,
        tf32=156e12,
        fp32=19.5e12,
        bandwidth=2039e9,
        memory=80e9,
        link=300e9,
    ),
    # "NVIDIA H100 Tensor Core GPU", 2023.
    "h100": Gpu(
        name="H100 SXM 80 GB",
        fp16=989e12,
        bf16=989e12,
        tf32=494e12,
        fp32=67e12,
        bandwidth=3350e9,
        memory=80e9,
        link=450e9,
    ),
    # "NVIDIA H200 Tensor Core GPU", 2024.
    "h200": Gpu(
        name="H200 SXM 141 GB",
        fp16=989e12,
        bf16=989e12,
        tf32=494e12,
        fp32=67e12,
        bandwidth=4800e9,
        memory=141e9,
        link=450e9,
    ),
}


def find_gpu(name: str) -> Gpu:
    """The GPU called `name`, in any case.

    Raises:
        ValueError: an unknown one; the nearest is named.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"--gpu: {name!r} is unknown, {nearest(name.lower(), GPUS)}")
    return GPUS[name.lower()]
