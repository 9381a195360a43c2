"""How training samples are attacked: the attack, the choice of radii, and the fields of single methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from iaat_fast import validate
from iaat_fast.command_line import Pixels


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
