"""Signatures of the compiled module: addresses, sizes and numbers; see csrc/cpu/kernels.h and csrc/cuda/launch.h."""

from typing import Any

def project_linf(
    dtype: int,
    out: int,
    x_adv: int,
    x: int,
    eps: int,
    rows: int,
    samples: int,
    row_elems: int,
    lo: float,
    hi: float,
) -> bool: ...
def pgd_step_linf(
    dtype: int,
    x_adv: int,
    grad: int,
    x: int,
    eps: int,
    alpha: int,
    stats: int,
    rows: int,
    samples: int,
    row_elems: int,
    lo: float,
    hi: float,
    targeted: bool,
) -> bool: ...
def random_start_linf(
    dtype: int,
    out: int,
    x: int,
    eps: int,
    stream: int,
    index: int,
    rows: int,
    samples: int,
    row_elems: int,
    lo: float,
    hi: float,
) -> bool: ...
def minus_onehot(
    dtype: int, rows: int, y: int, n_rows: int, samples: int, classes: int
) -> bool: ...
def saturation_proof(
    dtype: int, cotangent: int, logits: int, y: int, rows: int, samples: int, classes: int
) -> bool: ...
def select_epsilon(
    dtype: int,
    memory: int,
    size: int,
    index: int,
    logits: int,
    y: int,
    eps: int,
    choice: int,
    misclassified: int,
    samples: int,
    classes: int,
    gamma: float,
    beta: float,
    eps_min: float,
    eps_max: float,
    clamp_candidate: bool,
) -> bool: ...
def random_crop_flip(
    out: int,
    images: int,
    index: int,
    stream: int,
    n: int,
    size: int,
    height: int,
    width: int,
    channels: int,
    padding: int,
    flip: bool,
) -> bool: ...
def relu_backward(
    dtype: int, grad: int, out: int, other: int, elements: int, floor: float, ceiling: float
) -> None: ...
def scale_shift_relu(
    dtype: int,
    out: int,
    x: int,
    residual: int,
    scale: int,
    shift: int,
    elements: int,
    channels: int,
    inner: int,
    floor: float,
    ceiling: float,
) -> None: ...
def scale_shift_relu_backward(
    dtype: int,
    grad: int,
    out: int,
    scale: int,
    residual: int,
    elements: int,
    channels: int,
    inner: int,
    floor: float,
    ceiling: float,
) -> None: ...
def use_isa(name: str) -> None: ...
def build_info() -> dict[str, Any]: ...

class cuda:
    """A submodule, in builds with CUDA kernels only. Addresses are of the device's memory; nothing is returned."""

    PERSISTENT_CLASSES: int

    @staticmethod
    def project_linf(
        dtype: int,
        out: int,
        x_adv: int,
        x: int,
        eps: int,
        rows: int,
        samples: int,
        row_elems: int,
        lo: float,
        hi: float,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def pgd_step_linf(
        dtype: int,
        x_adv: int,
        grad: int,
        x: int,
        eps: int,
        alpha: int,
        stats: int,
        rows: int,
        samples: int,
        row_elems: int,
        lo: float,
        hi: float,
        targeted: bool,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def random_start_linf(
        dtype: int,
        out: int,
        x: int,
        eps: int,
        seed: int,
        seed_size: int,
        index: int,
        rows: int,
        samples: int,
        row_elems: int,
        lo: float,
        hi: float,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def ce_cotangent(
        dtype: int,
        out: int,
        logits: int,
        y: int,
        rows: int,
        samples: int,
        classes: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def saturation_proof(
        dtype: int,
        cotangent: int,
        logits: int,
        y: int,
        rows: int,
        samples: int,
        classes: int,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def select_epsilon(
        dtype: int,
        memory: int,
        size: int,
        index: int,
        logits: int,
        y: int,
        eps: int,
        choice: int,
        misclassified: int,
        samples: int,
        classes: int,
        gamma: float,
        beta: float,
        eps_min: float,
        eps_max: float,
        clamp_candidate: bool,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def random_crop_flip(
        out: int,
        images: int,
        index: int,
        seed: int,
        seed_size: int,
        n: int,
        size: int,
        height: int,
        width: int,
        channels: int,
        padding: int,
        flip: bool,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def relu_backward(
        dtype: int,
        grad: int,
        out: int,
        other: int,
        elements: int,
        floor: float,
        ceiling: float,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def scale_shift_relu(
        dtype: int,
        out: int,
        x: int,
        residual: int,
        scale: int,
        shift: int,
        elements: int,
        channels: int,
        inner: int,
        floor: float,
        ceiling: float,
        device: int,
        stream: int,
    ) -> None: ...
    @staticmethod
    def scale_shift_relu_backward(
        dtype: int,
        grad: int,
        out: int,
        scale: int,
        residual: int,
        elements: int,
        channels: int,
        inner: int,
        floor: float,
        ceiling: float,
        device: int,
        stream: int,
    ) -> None: ...
