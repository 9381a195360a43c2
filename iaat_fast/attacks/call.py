"""One call of an attack: its arguments, checked and with defaults filled in, and the statistics of its gradients."""

from __future__ import annotations

import copy
import dataclasses
import warnings

import torch
from torch import Tensor

from iaat_fast import validate
from iaat_fast.attacks import inputs
from iaat_fast.attacks.cudagraph import capturing
from iaat_fast.attacks.findings import Findings
from iaat_fast.attacks.options import StepSize
from iaat_fast.attacks.passes import PassCounter
from iaat_fast.attacks.recorder import Recorder
from iaat_fast.ops import checks

# ReLU networks on real images give less than 1 % exact zeros; a masked gradient gives nearly all.
SUSPICIOUS_ZEROS = 0.5


@dataclasses.dataclass
class Call:
    """One call's tensors.

    x, y, index: images [N, ...], int64 [N] and int64 [N], of the N samples.
    eps, alpha: [K*N], one value for each row; row k*N + i is candidate k of sample i.
    start: given start images [N, ...] or [K*N, ...], or None.
    stream: int64 [3], key, restart and first candidate: the random numbers are a function of these.
    stats: int64 [2], the findings' counts of zero and NaN gradient entries, to which steps add.
    coupled: whether samples share batch statistics.
    goal: the classes whose loss is climbed or descended, or the prediction of "kl", once it is known.
    entries, gradients, planned: as in `AttackStats`.
    mask: bool, like x, where it may change; None everywhere.
    passes: where the passes of each sample are counted, None where no one asks.
    trace: where iterations are recorded, None where no one asks.
    given: with `lo`, `hi` per channel the images as they were given, of which x are the scaled ones; else None.
    """

    x: Tensor
    y: Tensor
    eps: Tensor
    alpha: Tensor
    start: Tensor | None
    index: Tensor
    stream: Tensor
    findings: Findings
    stats: Tensor
    coupled: bool
    restart: int
    goal: Tensor | None = None
    largest_class: int | None = None
    entries: int = 0
    gradients: int = 0
    planned: int = 0
    mask: Tensor | None = None
    passes: PassCounter | None = None
    trace: Recorder | None = None
    given: Tensor | None = None

    @property
    def rows(self) -> int:
        return len(self.eps)

    @property
    def images(self) -> Tensor:
        """The images [N, ...] as they were given."""
        return self.x if self.given is None else self.given

    def begin_restart(self, number: int) -> None:
        """Switch the noise to that of a restart, numbered from 0 within the call."""
        self.stream[1].fill_(self.restart + number)

    def count(self, grad: Tensor, times: int = 1, *, passes: int = 1) -> None:
        """Count `times` steps along gradients [n, ...] like this one, each of `passes` passes through the network."""
        self.entries += times * grad.numel()
        self.gradients += times * passes * len(grad)

    def of_samples(self, samples: Tensor, eps: Tensor, alpha: Tensor) -> Call:
        """The call of some of the N samples alone, int64 [n], with one candidate each, of radii and step sizes [N]."""
        part = copy.copy(self)
        part.eps, part.alpha = eps, alpha
        if len(samples) < len(self.y):
            for name in ("x", "y", "index", "eps", "alpha", "start", "goal", "mask", "given"):
                value = getattr(part, name)
                setattr(part, name, None if value is None else value[samples])
        part.entries = part.gradients = 0
        part.planned = self.planned * len(self.y) // self.rows
        return part

    def add(self, part: Call, *, of: int) -> None:
        """Add the counts of `part`, one of `of` calls on some of the samples, each planned for all samples."""
        self.entries += part.entries
        self.gradients += part.gradients
        self.planned = part.planned * of

    def safe_classes(self, y: Tensor, classes: int) -> Tensor:
        """Classes y of samples of this call as they may index logits, once the number of classes is known.

        On a CPU, raises ValueError for a class that the model does not have. On a GPU classes are clamped into range,
        and the findings report the error later.
        """
        if self.largest_class is None:
            return self.findings.look_at_classes(y, classes)
        if self.largest_class >= classes:
            raise ValueError(inputs.out_of_range(self.largest_class, classes))
        return y

    def mask_of(self, rows: Tensor) -> Tensor | None:
        """bool [n, ...], where the images of these rows may change."""
        return None if self.mask is None else self.mask[rows % len(self.y)]

    def per_candidate(self, x: Tensor) -> Tensor:
        """x [N, ...] repeated for the K candidates: [K*N, ...]."""
        copies = self.rows // len(x)
        return x.repeat(copies, *[1] * (x.dim() - 1)) if copies > 1 else x


def pin_(images: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
    """Images [K*n, ...], which get their values at x [n, ...] back, in place, where the mask [n, ...] is False."""
    if mask is not None:
        candidates = images.view(-1, *x.shape)
        candidates.copy_(torch.where(mask, candidates, x))
    return images


def prepare_call(
    x: Tensor,
    y: Tensor,
    *,
    eps: float | Tensor,
    alpha: StepSize | None,
    start: Tensor | None,
    index: Tensor | None,
    seed: int | Tensor | None,
    candidate: int,
    restart: int,
    findings: Findings | None,
    box: tuple[float, float],
    moves: bool,
    coupled: bool,
    mask: Tensor | None = None,
    passes: PassCounter | None = None,
    given: Tensor | None = None,
) -> Call:
    """Check the arguments of `Attack.__call__` and fill in the defaults; the findings check the values in tensors.

    Args:
        box: (lo, hi).
        moves: whether the attack takes a step.
        coupled: whether the samples share batch statistics.
        given: the images as they were given, where x, eps and alpha are shares of hi - lo of their channels.

    Raises:
        TypeError, ValueError: an argument is not as described.
    """
    checks.images("x", x)
    if capturing(x.device):
        _check_captured(seed, findings)
    n = x.shape[0]
    checks.int64_vector("y", y, n, x.device)
    if index is not None:
        checks.int64_vector("index", index, n, x.device)
    validate.distance("eps", eps, *box)
    if alpha is not None and not callable(alpha):
        validate.distance("alpha", alpha, *box)
    rows = eps.shape[0] if isinstance(eps, Tensor) and eps.dim() == 1 else n
    if not checks.is_multiple(rows, n):
        raise ValueError(f"eps: length {rows}, expected a multiple of the {n} samples")
    radii = checks.per_row("eps", eps, rows, x)
    step = alpha(radii) if callable(alpha) else radii if alpha is None else alpha
    if isinstance(step, Tensor) and step.shape == (n,) and rows != n:
        step = step.repeat(rows // n)
    steps = checks.per_row("alpha", step, rows, x)
    if start is not None:
        checks.same_images("start", start, "x", x, candidates=rows != n)
    validate.int64("candidate", candidate)
    validate.int64("restart", restart)
    findings = _findings(findings, x.device)
    call = Call(
        x=x.detach().clone() if x.is_inference() else x.detach(),
        y=y,
        eps=radii,
        alpha=steps,
        start=start,
        index=torch.arange(n, device=x.device) if index is None else index,
        stream=_stream(seed, candidate, x.device),
        findings=findings,
        stats=findings.counts[:2],
        coupled=coupled,
        restart=restart,
        mask=None if mask is None else inputs.expanded_mask(mask, x),
        passes=passes,
        given=given,
    )
    if rows:
        call.largest_class = findings.look_at_values(
            call.x,
            y,
            radii,
            steps,
            *box,
            moves=moves,
            shares=given is not None,
            radii_are_sound=not isinstance(eps, Tensor),
            steps_are_sound=alpha is None or (isinstance(alpha, (int, float)) and alpha > 0),
        )
    return call


def _check_captured(seed: int | Tensor | None, findings: Findings | None) -> None:
    """Raise ValueError for arguments that cannot be used, or would repeat in every replay, in a captured CUDA graph."""
    if findings is None:
        raise ValueError(
            "findings: None while a CUDA graph is captured, where nothing can be read; expected `Findings`"
        )
    if seed is None:
        raise ValueError(
            "seed: None while a CUDA graph is captured, whose replays would all repeat one draw; expected a tensor, "
            "or an int to repeat it"
        )


def _findings(given: Findings | None, device: torch.device) -> Findings:
    if given is None:
        return Findings.of_one_call(device)
    if not isinstance(given, Findings):
        raise TypeError(f"findings: {type(given).__name__}, expected Findings or None")
    if given.counts.device != device:
        raise ValueError(f"findings: device {given.counts.device}, expected that of x, {device}")
    return given


def _stream(seed: int | Tensor | None, candidate: int, device: torch.device) -> Tensor:
    """int64 [3]: key, restart 0, first candidate; filled on the device, as a copy from the host would wait for it."""
    stream = torch.zeros(3, dtype=torch.int64, device=device)
    if isinstance(seed, Tensor):
        stream[0].copy_(_seed(seed, device))
    else:
        if seed is None:
            seed = int(
                torch.randint(2**63 - 1, (), device="cpu")
            )  # even if the default device is another
        validate.int64("seed", seed)
        stream[0].fill_(seed)
    stream[2].fill_(candidate)
    return stream


def _seed(seed: Tensor, device: torch.device) -> Tensor:
    if seed.dtype is not torch.int64:
        raise TypeError(f"seed: dtype {seed.dtype}, expected int64")
    if seed.shape not in ((), (1,)):
        raise ValueError(f"seed: shape {tuple(seed.shape)}, expected [] or [1]")
    if seed.device != device:
        raise ValueError(f"seed: device {seed.device}, expected that of x, {device}")
    return seed.view(())


@dataclasses.dataclass(frozen=True)
class AttackStats:
    """Statistics of the input gradients of one call.

    total, zero, nan: entries of all gradients, and how many of them were 0 and NaN.
    gradients: number of gradients, one forward and backward pass of one image each.
    planned: `gradients` if no sample had left the batch early.
    """

    total: int = 0
    zero: int = 0
    nan: int = 0
    gradients: int = 0
    planned: int = 0

    def plus(self, call: AttackStats) -> AttackStats:
        """The counts of both; `planned` stays that of self."""
        return dataclasses.replace(
            self,
            total=self.total + call.total,
            zero=self.zero + call.zero,
            nan=self.nan + call.nan,
            gradients=self.gradients + call.gradients,
        )

    def warn(self, *, zeros: bool = True) -> None:
        """Warn if entries were NaN or mostly 0: neither moves a pixel. zeros=False: many zeros are no reason to warn.

        The texts hold no counts, so that Python's filter shows each of them once per caller, not in every call.
        """
        if self.nan:
            warnings.warn(
                "some gradient entries are NaN and moved no pixel (`stats` counts them), so robustness looks higher "
                "than it is; likely cause: NaN or huge weights, or a function in the model without a gradient where it "
                "was evaluated (a square root or norm at 0, 0/0)",
                RuntimeWarning,
                stacklevel=3,
            )
        if zeros and self.zero > SUSPICIOUS_ZEROS * self.total:
            warnings.warn(
                "more than half of the gradient entries are 0 and moved no pixel (`stats` counts them), so "
                "robustness looks higher than it is; likely cause: masked gradients (a quantised, thresholded or "
                "detached input) or dead units (training that has collapsed)",
                RuntimeWarning,
                stacklevel=3,
            )
