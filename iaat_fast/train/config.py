"""The configuration of a training run: one frozen dataclass per part, validated when it is made.

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
class AttackConfig:
    """The PGD attack that training makes its adversarial samples with."""

    eps: Pixels = 8 / 255
    """Radius of the methods that train at a fixed one, adv for instance: the same for every sample."""
    alpha: Pixels = 2 / 255
    """Step size; the smallest step size if alpha-rule is scaled."""
    alpha_rule: Literal["fixed", "scaled", "radius"] = "fixed"
    """fixed: alpha for every sample; scaled: max(eps_i / (0.5 steps), alpha) for sample i, whose
    radius is eps_i; radius: eps_i."""
    steps: int = 10
    """Steps of the attack."""
    targeted: Literal["no", "random"] = "no"
    """no: away from the true class; random: towards a class drawn for each sample and step from the
    others."""
    bn: Literal["eval", "train", "train_update"] = "eval"
    """BatchNorm while attacking and selecting: frozen statistics (eval), batch statistics (train),
    or batch statistics that also update the running ones (train_update)."""
    clamp_start: bool = True
    """Clamp the random start to [0, 1] before the first forward."""
    noise: float = 1.0
    """The random start is uniform within noise x eps_i of the image; 2 with steps 1, alpha-rule radius
    and no-project: N-FGSM for any radius."""
    project: bool = True
    """Project the attack's images back within eps_i; otherwise they only stay within [0, 1]."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the attack's gradients; auto: what the hardware is fast in. Weights and
    evaluation stay in fp32."""
    engine: Literal["auto", "exact", "fast"] = "auto"
    """Where the attack's gradients come from: the plain arithmetic (exact), a folded copy of the
    network (fast), or exact in fp32 and fast below (auto)."""

    def __post_init__(self) -> None:
        validate.pixel_distance("attack.eps", self.eps)
        validate.pixel_distance("attack.alpha", self.alpha, positive=True)
        validate.choice("attack.alpha_rule", self.alpha_rule, ("fixed", "scaled", "radius"))
        validate.integer("attack.steps", self.steps, 1)
        validate.choice("attack.targeted", self.targeted, ("no", "random"))
        validate.choice("attack.bn", self.bn, ("eval", "train", "train_update"))
        validate.number("attack.noise", self.noise)
        validate.choice(
            "attack.precision", self.precision, ("fp32", "tf32", "bf16", "fp16", "auto")
        )
        validate.choice("attack.engine", self.engine, ("auto", "exact", "fast"))


@dataclass(frozen=True, kw_only=True)
class EpsilonConfig:
    """The radius of each sample (method `iaat`), Algorithms 1 and 2."""

    warmup_epochs: int = 5
    """Epochs of fixed-radius training before the radii adapt; 0: no warm-up."""
    eps_w: Pixels = 8 / 255
    """Radius during the warm-up."""
    gamma: Pixels = 1.9 / 255
    """How far Algorithm 2's candidates lie from the radius of the last visit."""
    beta: float = 0.1
    """Weight of the chosen candidate in the exponential average of a sample's radii."""
    eps_min: Pixels = 0.0
    """Lower bound of the radius after selection; 0: none."""
    eps_min_bounds: Literal["memory", "images"] = "memory"
    """What eps-min bounds: the radius that is stored, from which the next visit starts (memory), or
    only the radius of the images trained on (images), as in the paper's text, which applies the
    bound after Algorithm 2 has stored the radius."""
    selection_steps: int | None = None
    """Steps of the attacks that select the radius; as many as the training attack's by default."""
    strategy: Literal["auto", "lazy", "batched", "sequential"] = "auto"
    """How the candidates are attacked: the second only where the first was fooled (lazy), together
    in one batch (batched), or one after the other on the whole batch (sequential); auto: batched on
    a GPU, lazy on a CPU, and sequential with bn other than eval. In eval the radii are the same."""
    final: Literal["exact", "reuse"] = "exact"
    """Training samples: attack again at the smoothed radius (exact, Algorithm 1 line 8), or project
    the chosen candidate into it (reuse, an approximation)."""
    clamp: Literal["result", "candidate"] = "result"
    """Where a negative radius becomes 0: after the exponential average (result) or before (candidate)."""
    misclassified: Literal["algorithm2", "shrink"] = "algorithm2"
    """Radius of misclassified samples after the warm-up: by Algorithm 2, or towards 0 (shrink)."""
    misclassified_input: Literal["clean", "adversarial"] = "clean"
    """What misclassified samples are trained on: the clean image, or the attacked one."""
    warmup_rule: Literal["visited", "correct"] = "visited"
    """Radii stored in the warm-up: eps-w for every sample visited (visited), or eps-w for those
    classified correctly and 0 for the others (correct)."""

    def __post_init__(self) -> None:
        validate.integer("epsilon.warmup_epochs", self.warmup_epochs, 0)
        validate.pixel_distance("epsilon.eps_w", self.eps_w)
        validate.pixel_distance("epsilon.gamma", self.gamma)
        validate.number("epsilon.beta", self.beta, high=1.0)
        validate.pixel_distance("epsilon.eps_min", self.eps_min)
        validate.choice("epsilon.eps_min_bounds", self.eps_min_bounds, ("memory", "images"))
        validate.integer("epsilon.selection_steps", self.selection_steps, 1, optional=True)
        validate.choice(
            "epsilon.strategy", self.strategy, ("auto", "lazy", "batched", "sequential")
        )
        validate.choice("epsilon.final", self.final, ("exact", "reuse"))
        if self.selection_steps is not None and self.final == "reuse":
            raise ValueError(
                "epsilon.final: 'reuse', which trains on the images of the selection, expected "
                f"'exact' with epsilon.selection_steps {self.selection_steps}"
            )
        validate.choice("epsilon.clamp", self.clamp, ("result", "candidate"))
        validate.choice("epsilon.misclassified", self.misclassified, ("algorithm2", "shrink"))
        validate.choice(
            "epsilon.misclassified_input", self.misclassified_input, ("clean", "adversarial")
        )
        validate.choice("epsilon.warmup_rule", self.warmup_rule, ("visited", "correct"))


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Fields of the baseline methods; each method reads only its own."""

    mixup_alpha: float = 1.0
    """Mixing weights are drawn from Beta(alpha, alpha), one per batch (method mixup)."""
    trades_beta: float = 6.0
    """Weight of the divergence, 1/lambda of the paper (method trades)."""
    mart_beta: float = 6.0
    """Weight of the weighted divergence, lambda of the paper (method mart)."""
    nfgsm_noise: float = 2.0
    """Noise before the step, uniform within this multiple of the radius; Fast-AT: 1 (method nfgsm)."""
    nfgsm_step: float = 1.0
    """Size of the step, as a multiple of the radius; Fast-AT: 1.25 (method nfgsm)."""
    nfgsm_project: bool = False
    """Project back within the radius after the step, as Fast-AT does (method nfgsm)."""
    mma_d_max: Pixels = 32 / 255
    """Margin beyond which a sample's adversarial loss is left out (method mma)."""
    mma_d_min: Pixels = 0.005
    """Smallest radius, and the first, of the attack that gives the direction (method mma)."""
    mma_step_scale: float = 2.5
    """Sum of that attack's step sizes, as a multiple of its radius (method mma)."""
    mma_bisections: int = 10
    """Halvings in the search for the margin (method mma)."""
    mma_clean_weight: float = 1 / 3
    """Weight of the cross-entropy on clean images (method mma)."""
    cat_eps_max: Pixels = 8 / 255
    """Largest radius of a sample (method cat)."""
    cat_eta: Pixels = 0.005
    """How much a sample's radius grows at a visit that it withstands (method cat)."""
    cat_c: float = 10.0
    """Share of a sample's label that is drawn, per unit of its radius on the [0, 1] scale (method cat)."""
    cat_loss: Literal["ce", "mix"] = "ce"
    """Loss of attack and update: cross-entropy (ce), or that and the margin (mix) (method cat)."""
    cat_kappa: float = 10.0
    """Margin of the logits beyond which mix no longer widens it (method cat)."""
    awp_gamma: float = 0.0
    """Adversarial weight perturbation, with any method that attacks: the norm by which each weight
    tensor is moved to raise the loss, relative to its own; 0: none. Released code: 0.01 with adv,
    0.005 with trades."""
    awp_warmup_epochs: int = 0
    """Epochs before the weights are perturbed. Released code: 10 with trades."""

    def __post_init__(self) -> None:
        validate.number("baseline.mixup_alpha", self.mixup_alpha, above=True)
        validate.number("baseline.trades_beta", self.trades_beta)
        validate.number("baseline.mart_beta", self.mart_beta)
        validate.number("baseline.nfgsm_noise", self.nfgsm_noise)
        validate.number("baseline.nfgsm_step", self.nfgsm_step, above=True)
        validate.pixel_distance("baseline.mma_d_max", self.mma_d_max, positive=True)
        validate.pixel_distance("baseline.mma_d_min", self.mma_d_min, positive=True)
        validate.number("baseline.mma_step_scale", self.mma_step_scale, above=True)
        validate.integer("baseline.mma_bisections", self.mma_bisections, 1)
        validate.number("baseline.mma_clean_weight", self.mma_clean_weight, high=1.0)
        validate.pixel_distance("baseline.cat_eps_max", self.cat_eps_max, positive=True)
        validate.pixel_distance("baseline.cat_eta", self.cat_eta, positive=True)
        validate.number("baseline.cat_c", self.cat_c)
        validate.choice("baseline.cat_loss", self.cat_loss, ("ce", "mix"))
        validate.number("baseline.cat_kappa", self.cat_kappa)
        validate.number("baseline.awp_gamma", self.awp_gamma)
        validate.integer("baseline.awp_warmup_epochs", self.awp_warmup_epochs, 0)


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
