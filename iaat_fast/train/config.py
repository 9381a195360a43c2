"""The configuration of a training run: one frozen dataclass per part, validated when it is made.

The parts about attacks, radii and single methods are in `attack_config.py`.

Every epsilon, gamma and attack step is a float on the [0, 1] pixel scale here and in `config.json`;
the command line reads and prints the same fields in units of 1/255 (`Pixels`). The docstring of a
field is its help text. Defaults are those of `paper` on CIFAR-10 with a ResNet-18 (Table 7); what a
preset or a protocol changes is in `presets.py`.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import tyro
from tyro.conf import arg

from iaat_fast import data as datasets
from iaat_fast import methods, models, units, validate
from iaat_fast.command_line import Pixels
from iaat_fast.run_folder import CUSTOM
from iaat_fast.train.attack_config import AttackConfig, BaselineConfig, EpsilonConfig

Method = Annotated[
    str,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=f"{{{','.join(methods.NAMES)}}}",
        choices=methods.NAMES,
        instance_from_str=lambda words: words[0],
        is_instance=lambda value: isinstance(value, str),
        str_from_instance=lambda value: [value],
    ),
]
"""One of `methods.NAMES`."""
Protocol = Literal["paper", "released"]
PROTOCOLS: tuple[str, ...] = get_args(Protocol)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The images."""

    name: Annotated[str, arg(name="dataset")] = "cifar10"
    """Data set: digits, cifar10, cifar100 or imagenet."""
    path: Annotated[str | None, arg(name="data")] = None
    """Folder that holds the data set (imagenet: train/CLASS/IMAGE and val/CLASS/IMAGE), or an .npz
    with x_train, y_train, x_test, y_test; none for digits, which are embedded."""
    limit: int | None = None
    """Take the first N training and the first N test images; imagenet's go through the classes in
    turn."""
    augment: bool = True
    """Reflect-pad by 4, random crop, horizontal flip; imagenet: random resized crop, horizontal
    flip."""
    workers: int | None = None
    """imagenet: processes that decode images; one per core by default, 16 at most; 0: the training
    process decodes."""
    on_bad_image: Literal["stop", "skip"] = "stop"
    """imagenet: at an image that cannot be decoded, stop with a checkpoint, or leave it out."""

    def __post_init__(self) -> None:
        if self.name != CUSTOM:
            validate.choice("data.name", self.name, datasets.NAMES)
        if self.name == "digits" and self.path is not None:
            raise ValueError(
                f"data.path: {self.path!r}, expected none with data.name 'digits', which are embedded in scikit-learn"
            )
        validate.integer("data.limit", self.limit, 1, optional=True)
        validate.integer("data.workers", self.workers, 0, optional=True)
        validate.choice("data.on_bad_image", self.on_bad_image, datasets.ON_BAD_IMAGE)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: Annotated[str, arg(name="model")] = "resnet18"
    """Network: digits-cnn, resnet18, wrn32-10, or imagenet-resnet18, -34, -50, -101 or -152."""
    width: int | None = None
    """Channels of the first stage, for slim versions; the network's own by default."""
    depth: int | None = None
    """Depth of the network; its own by default."""

    def __post_init__(self) -> None:
        if self.name != CUSTOM:
            validate.choice("model.name", self.name, models.NAMES)
        validate.integer("model.width", self.width, 1, optional=True)
        validate.integer("model.depth", self.depth, 1, optional=True)


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """SGD with momentum, and its learning rate."""

    epochs: int = 200
    """Passes over the training images."""
    batch_size: int = 128
    """Images per step, over all ranks."""
    accumulate: int = 1
    """Divide a rank's images of a step into K micro-batches, for less memory. The update is the same
    up to rounding, except that BatchNorm's statistics are those of a micro-batch."""
    sync_batchnorm: bool = False
    """BatchNorm statistics over the images of all ranks (GPUs only); otherwise each rank uses those
    of its own images, and the running statistics are the first rank's."""
    lr: float = 0.1
    """Learning rate at the start; 0 leaves the weights unchanged."""
    lr_reference_batch: int | None = None
    """Batch size that lr is meant for: the learning rate is lr x batch-size / K (Goyal et al. 2017);
    lr itself by default."""
    lr_warmup_epochs: int = 0
    """Epochs over which the learning rate rises, step by step, from lr to its scaled value, where
    that is larger."""
    momentum: float = 0.9
    """Momentum."""
    weight_decay: float = 0.0002
    """Weight decay."""
    lr_schedule: Literal["step", "cosine", "one-cycle"] = "step"
    """step: decay at decay-epochs, as in the paper; cosine: from lr down to 0; one-cycle: up from 0 to lr
    over the first two fifths of the run, then down to 0."""
    decay_epochs: tuple[int, ...] = (80, 140, 170)
    """Epochs (counted from 0) at whose start the learning rate is multiplied by decay-factor, with
    the schedule step."""
    decay_factor: float = 0.1
    """Factor of the step decay."""
    amp: Literal["auto", "off", "bf16", "fp16"] = "off"
    """Precision of the forward and backward of the weight update; fp16 scales the loss; auto: bf16 on
    GPUs of compute capability 8.0 and later, else off. Weights stay in fp32."""
    ema_decay: float = 0.0
    """Decay per step of the average of the weights that is evaluated in their place; 0: none."""
    graph: bool = True
    """Capture whole training steps in a CUDA graph where possible: on one GPU, in fp32 and bf16."""

    def __post_init__(self) -> None:
        validate.integer("optim.epochs", self.epochs, 1)
        validate.integer("optim.batch_size", self.batch_size, 1)
        validate.integer("optim.accumulate", self.accumulate, 1)
        if self.accumulate > self.batch_size:
            raise ValueError(
                f"optim.accumulate: {self.accumulate}, expected at most optim.batch_size, "
                f"{self.batch_size}"
            )
        validate.number("optim.lr", self.lr)
        validate.integer("optim.lr_reference_batch", self.lr_reference_batch, 1, optional=True)
        validate.integer("optim.lr_warmup_epochs", self.lr_warmup_epochs, 0)
        if self.lr_warmup_epochs and self.lr_reference_batch is None:
            raise ValueError(
                f"optim.lr_warmup_epochs: {self.lr_warmup_epochs}, expected 0, or "
                "optim.lr_reference_batch, from whose rate it rises"
            )
        validate.choice("optim.amp", self.amp, ("auto", "off", "bf16", "fp16"))
        validate.number("optim.momentum", self.momentum, high=1.0)
        validate.number("optim.weight_decay", self.weight_decay)
        validate.choice("optim.lr_schedule", self.lr_schedule, ("step", "cosine", "one-cycle"))
        for epoch in self.decay_epochs:
            validate.integer("optim.decay_epochs", epoch, 1)
        if list(self.decay_epochs) != sorted(set(self.decay_epochs)):
            raise ValueError(f"optim.decay_epochs: {self.decay_epochs}, expected rising epochs")
        validate.number("optim.decay_factor", self.decay_factor, high=1.0, above=True)
        validate.number("optim.ema_decay", self.ema_decay, high=1.0, below=True)


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The closing evaluation: natural accuracy and PGD with random restarts on the test images."""

    eps: Annotated[Pixels, arg(name="eval-eps")] = 8 / 255
    """Radius of the closing attack."""
    targeted: Annotated[Literal["no", "random"], arg(name="eval-targeted")] = "no"
    """Whether the closing attack aims at random classes; a sample is robust if it is still classified
    correctly."""
    alpha: Annotated[Pixels, arg(name="eval-alpha")] = 2 / 255
    """Step size of the closing attack."""
    steps: Annotated[int, arg(name="eval-steps")] = 10
    """Steps of the closing attack."""
    restarts: Annotated[int, arg(name="eval-restarts")] = 5
    """Random restarts; a sample counts as robust if it withstands all of them."""
    batch_size: Annotated[int, arg(name="eval-batch-size")] = 256
    """Images per evaluation batch."""

    def __post_init__(self) -> None:
        validate.pixel_distance("evaluation.eps", self.eps)
        validate.pixel_distance("evaluation.alpha", self.alpha, positive=True)
        validate.choice("evaluation.targeted", self.targeted, ("no", "random"))
        validate.integer("evaluation.steps", self.steps, 1)
        validate.integer("evaluation.restarts", self.restarts, 1)
        validate.integer("evaluation.batch_size", self.batch_size, 1)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how the run is carried out."""

    out: str | None = None
    """Run folder; a fresh runs/<preset>-<method>-<time> by default."""
    seed: int = 0
    """Seed of weights, order, augmentation and attacks."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N."""
    fast: bool = False
    """Let the hardware decide precision, autocast and strategy, where no flag gives them: bf16 attacks
    and bf16 autocast on GPUs of compute capability 8.0 and later, fp16 attacks on older ones, bf16
    attacks on CPUs that multiply in it, else fp32 attacks on a folded copy; whole steps in graphs on
    a GPU. Half precision rounds, so radii and weights are not those of fp32 to the bit. final stays
    as it is, because reuse is an approximation."""
    checkpoint_steps: int = 0
    """Also save a checkpoint every K steps within an epoch; 0: not by the number of steps."""
    checkpoint_minutes: float = 10.0
    """Also save a checkpoint every N minutes within an epoch; 0: not by the clock."""
    snapshot_epochs: int = 5
    """Keep a snapshot of all radii every K epochs, and after the last."""
    tensorboard: bool = True
    """Write TensorBoard events."""

    def __post_init__(self) -> None:
        validate.integer("run.seed", self.seed, 0)
        validate.integer("run.checkpoint_steps", self.checkpoint_steps, 0)
        validate.number("run.checkpoint_minutes", self.checkpoint_minutes)
        validate.integer("run.snapshot_epochs", self.snapshot_epochs, 1)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A training run. Make one with `preset`; `dataclasses.replace` or `override` change it."""

    preset: tyro.conf.Positional[Annotated[str, arg(metavar="[PRESET]")]] = "digits"
    """Preset that the defaults below belong to; comes first if given."""
    method: Annotated[Method, arg(help=methods.HELP)] = methods.IAAT
    protocol: Protocol = "paper"
    """Defaults as the paper describes them, or as its authors' code has them (released); the network is
    the standard one under both, see docs/architecture.md."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    attack: AttackConfig = field(default_factory=AttackConfig)
    epsilon: EpsilonConfig = field(default_factory=EpsilonConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            if dataclasses.is_dataclass(part := getattr(self, each.name)):
                object.__setattr__(self, each.name, _with_plain_values(part))
        validate.choice("method", self.method, methods.NAMES)
        validate.choice("protocol", self.protocol, PROTOCOLS)
        bn, strategy = self.attack.bn, self.epsilon.strategy
        if (
            methods.reads(self.method, "epsilon.strategy")
            and bn != "eval"
            and strategy not in ("auto", "sequential")
        ):
            raise ValueError(
                f"epsilon.strategy: {strategy!r}, expected 'sequential' with attack.bn {bn!r}, "
                "whose batch statistics depend on which images share a batch"
            )
        if self.optim.sync_batchnorm and bn != "eval":
            raise ValueError(
                f"optim.sync_batchnorm: on, expected attack.bn 'eval', not {bn!r}; the ranks' attacks need not take "
                "the same number of forwards"
            )
        least, most = self.baseline.mma_d_min, self.baseline.mma_d_max
        if methods.reads(self.method, "baseline.mma_d_min") and least > most:
            raise ValueError(
                f"baseline.mma_d_min: {units.to_text(least)}/255, expected at most baseline.mma_d_max, "
                f"{units.to_text(most)}/255"
            )
        share, most = self.baseline.cat_c, self.baseline.cat_eps_max
        if methods.reads(self.method, "baseline.cat_c") and share * most > 1:
            raise ValueError(
                f"baseline.cat_c: {share:g}, expected at most 1 / baseline.cat_eps_max, {1 / most:g}"
            )

        if methods.reads(self.method, "attack.project") and not self.attack.project:
            self._check_unprojected()
        waits = self.baseline.awp_warmup_epochs
        if (
            methods.reads(self.method, "baseline.awp_gamma")
            and waits
            and not self.baseline.awp_gamma
        ):
            raise ValueError(
                f"baseline.awp_warmup_epochs: {waits}, expected 0, or baseline.awp_gamma above 0"
            )

    def _check_unprojected(self) -> None:
        """Refuse what needs images within their radius, where each sample has its own."""
        if methods.row(self.method).radius != "adaptive":
            return
        if self.attack.alpha_rule != "radius":
            raise ValueError(
                f"attack.alpha_rule: {self.attack.alpha_rule!r}, expected 'radius' with attack.project off and method "
                f"{self.method!r}: a sample's radius would not bound its step"
            )
        if self.epsilon.final == "reuse":
            raise ValueError(
                "epsilon.final: 'reuse', which projects images within their radius, expected 'exact' with "
                "attack.project off"
            )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as nested plain values, the content of `config.json`."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain


def _plain(value: Any) -> Any:
    """Numpy's scalars as Python's, which JSON and checkpoints take."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _with_plain_values(part: Any) -> Any:
    values = {each.name: getattr(part, each.name) for each in dataclasses.fields(part)}
    return dataclasses.replace(part, **{name: _plain(value) for name, value in values.items()})
