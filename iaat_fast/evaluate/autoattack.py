"""AutoAttack: its attacks in turn, each on the samples that are still robust."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from iaat_fast import validate
from iaat_fast.attacks import APGD, APGDT, FABT, Square
from iaat_fast.attacks.attack import Attack
from iaat_fast.attacks.model import attacked, logits_of, unwrap_ddp
from iaat_fast.attacks.options import PRECISIONS
from iaat_fast.data import Samples, fetch
from iaat_fast.evaluate.accuracies import natural_verdicts, samples_for, warn_if_random
from iaat_fast.evaluate.shared_pgd import correct as is_correct

# Attack k numbers its restarts from k times this. Any attack has fewer (targets included), so no two attacks start from
# the same noise.
_RESTARTS = 100_000

VERSIONS = ("standard", "rand")

_CLASSES = {"standard": (4, "targeted DLR"), "rand": (3, "DLR")}
"""How many classes a version needs, and for which loss."""


def standard(
    model: nn.Module, *, precision: str = "fp32", engine: str = "auto"
) -> dict[str, Attack]:
    """The attacks of AutoAttack's standard version in L-infinity, in order, each with its published budget.

    apgd-ce: 100 steps from one random start. apgd-t: the same towards each of 9 classes, with the targeted DLR loss.
    fab-t: 100 steps towards each of 9 classes. square: 5000 queries.

    Args:
        model, precision, engine: as in `PGD`. The four share one copy of the model.

    Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse
        parameter-free attacks", Section 5, and version "standard" of the code released with it.
    """
    attacks: dict[str, Attack] = {
        "apgd-ce": APGD(model, precision=precision, engine=engine),
        "apgd-t": APGDT(model, precision=precision, engine=engine),
        "fab-t": FABT(model, precision=precision, engine=engine),
        "square": Square(model, precision=precision, engine=engine),
    }
    network = attacks["apgd-ce"].network
    for attack in attacks.values():
        attack.network = network  # a copy takes seconds to make
    return attacks


def rand(model: nn.Module, *, precision: str = "fp32", engine: str = "auto") -> dict[str, Attack]:
    """The attacks of AutoAttack's version for randomised models in L-infinity, in order, with its published budget.

    apgd-ce and apgd-dlr: 100 steps each from one random start, every gradient the mean of 20 draws. No sample leaves
    early: the first image that fools a randomised model often does so in hardly more than half of the draws.

    Args:
        model, precision, engine: as in `PGD`.

    Source: Croce and Hein 2020, and version "rand" of the code released with it. That code takes losses and verdicts
        from the last draw of each step alone; here they are of all 20.
    """
    return {
        f"apgd-{loss}": APGD(
            model, loss=loss, early_stop=False, precision=precision, engine=engine, eot=20
        )
        for loss in ("ce", "dlr")
    }


@dataclasses.dataclass(frozen=True)
class Stage:
    """The result of one of the attacks.

    Args:
        attack: its name.
        standing_before: how many samples it attacked, those still robust.
        fallen: on how many of them it fooled the model.
        accuracy_after: share of all samples that are still robust.
        seconds: its time.
    """

    attack: str
    standing_before: int
    fallen: int
    accuracy_after: float
    seconds: float


@dataclasses.dataclass(frozen=True)
class AutoAttackResult:
    """Which samples are robust to AutoAttack; for an unfinished result, also the state to continue from.

    Args:
        eps, seed: of the attacks.
        attacks: their names, in order.
        natural: bool [N] on the CPU, samples whose clean image is classified correctly.
        correct: bool [N] on the CPU, samples that are still robust, which is final once `complete`.
        stages: the attacks that are finished.
        tested: bool [N] on the CPU, samples that the current attack has attacked; None: it has not started.
        seconds: time of the current attack so far.
        x_adv: float32 [N, C, H, W] on the CPU, only if images were asked for: for each sample the image that fools the
            model, or the clean image if that is misclassified or the sample is still robust. One tensor, filled while
            the attacks run and shared by all results of the evaluation.
        precision, engine: of the gradients.
    """

    eps: float
    seed: int
    attacks: tuple[str, ...]
    natural: Tensor
    correct: Tensor
    stages: tuple[Stage, ...] = ()
    tested: Tensor | None = None
    seconds: float = 0.0
    x_adv: Tensor | None = None
    precision: str = "fp32"
    engine: str = "auto"

    @property
    def accuracy(self) -> float:
        """Share of the samples that are still robust, in [0, 1]."""
        return float(self.correct.double().mean())

    @property
    def complete(self) -> bool:
        return len(self.stages) == len(self.attacks)

    def state(self) -> dict[str, Any]:
        """Plain values and tensors, for `torch.save`; `from_state` reads them back."""
        state = dataclasses.asdict(dataclasses.replace(self, x_adv=None))  # which would copy it
        del state["x_adv"]
        return state if self.x_adv is None else {**state, "x_adv": self.x_adv}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> AutoAttackResult:
        """The result that `state()` was taken of; raises KeyError or TypeError if `state` is something else."""
        stages = tuple(Stage(**stage) for stage in state["stages"])
        return cls(**{**state, "attacks": tuple(state["attacks"]), "stages": stages})


def autoattack(
    model: nn.Module,
    split: Any,
    y: Any = None,
    eps: float = 8 / 255,
    *,
    batch_size: int = 256,
    seed: int = 0,
    version: str = "standard",
    attacks: Mapping[str, Attack] | None = None,
    precision: str = "fp32",
    engine: str = "auto",
    images: bool = False,
    resume: AutoAttackResult | None = None,
    save: Callable[[AutoAttackResult], None] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> AutoAttackResult:
    """Accuracy under AutoAttack, in eval mode.

        autoattack(model, x, y, 8 / 255).accuracy

    Each attack attacks the samples that are still robust. A sample counts as robust if its clean image, and its image
    after every attack, are classified correctly, as in RobustBench. (`robust_accuracy` looks at attacked images only,
    as the IAAT paper does.)

    All random draws depend on the sample's number in the split and on `seed`, so the verdicts do not depend on the
    batch size, nor on interruptions, up to the rounding of the model's own forward.

    A randomised model draws from torch's generator, which `seed` does not set. Its verdicts, of clean images too, are
    those of the mean of the probabilities of as many draws as the largest `eot` of the attacks, 20 in version "rand";
    an attacked image gets draws of its own, not those by which the attack has chosen it. The standard version takes
    one draw, with a RuntimeWarning if two forwards of a few images differ.

    Args:
        model: maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], on the split's device; its mode,
            gradients and buffers are restored.
        split: the samples: a split of this library, (x, y), a Dataset or a DataLoader, or with y its images; see
            `data.as_samples`.
        y: labels [N] of images.
        eps: radius of the L-infinity ball, on the [0, 1] scale, at most 1.
        batch_size: samples attacked at once.
        seed: of the attacks' random draws.
        version: "standard", or "rand" for randomised models: see `standard` and `rand`.
        attacks: other attacks in its place, by name, in order; their own radius and seed are not used.
        precision, engine: of the gradients and of Square's queries, as in `PGD`, such as "bf16". A sample is fooled if
            the live model, as it is, misclassifies its image.
        images: also return the images, as `x_adv` of the result: 4 bytes of CPU memory per value.
        resume: an unfinished result of the same arguments, to continue from.
        save: called after each batch with the result so far.
        progress: called after each batch as progress(attack, done, all), in samples.

    Raises:
        TypeError, ValueError: an argument, or what the model returns, is not as described; `resume` has another radius,
            seed, precision, engine, number of samples or list of attacks; precision or engine is given with `attacks`,
            which have their own.

    Source: Croce and Hein 2020, Section 5; Croce et al. 2021, "RobustBench", Section 3.
    """
    validate.number("eps", eps)
    validate.distance("eps", eps, 0.0, 1.0)
    validate.choice("version", version, VERSIONS)
    validate.choice("precision", precision, PRECISIONS)
    validate.choice("engine", engine, ("auto", "exact", "fast"))
    if attacks is not None:
        for name, given, default in (("precision", precision, "fp32"), ("engine", engine, "auto")):
            if given != default:
                raise ValueError(
                    f"{name}: {given!r}, expected {default!r} with attacks of your own"
                )
    validate.int64("seed", seed)
    validate.integer("batch_size", batch_size, 1)
    split = samples_for(model, split, y)
    if attacks is None:
        version_of = standard if version == "standard" else rand
        attacks = version_of(model, precision=precision, engine=engine)
        _check_classes(model, split, version)
    _check_attacks(model, attacks)
    eot = max(attack.network.eot for attack in attacks.values())
    if resume is None:
        if any(attack.network.eot == 1 for attack in attacks.values()):
            warn_if_random(model, split)
        natural = natural_verdicts(model, split, batch_size=batch_size, eot=eot)
        result = AutoAttackResult(
            eps=eps,
            seed=seed,
            attacks=tuple(attacks),
            natural=natural,
            correct=natural.clone(),
            precision=precision,
            engine=engine,
        )
        if images:
            result = dataclasses.replace(result, x_adv=_own_images(split, batch_size))
    else:
        _check_resume(
            resume,
            eps=eps,
            seed=seed,
            attacks=tuple(attacks),
            samples=len(split),
            precision=precision,
            engine=engine,
        )
        if images and resume.x_adv is None:
            raise ValueError("resume: made without images, expected one made with images=True")
        result = resume
    for number, (name, attack) in enumerate(attacks.items()):
        if number < len(result.stages):
            continue
        tested = torch.zeros(len(split), dtype=torch.bool)
        tested = tested if result.tested is None else result.tested
        planned = int((result.correct | tested).sum())
        todo = (result.correct & ~tested).nonzero()[:, 0].to(split.labels.device)
        for index in todo.split(batch_size) if len(todo) else ():
            started = time.perf_counter()
            x, labels = fetch(split, index)
            x_adv = attack(x, labels, eps=eps, index=index, seed=seed, restart=_RESTARTS * number)
            correct, tested = result.correct.clone(), tested.clone()
            with attack.network.in_mode(), torch.no_grad():
                logits = attack.network.logits(x_adv, eot)
            samples, stands = index.cpu(), is_correct(logits, labels).cpu()
            correct[samples], tested[samples] = stands, True
            if result.x_adv is not None:
                result.x_adv[samples[~stands]] = x_adv.cpu()[~stands]
            seconds = result.seconds + time.perf_counter() - started
            result = dataclasses.replace(result, correct=correct, tested=tested, seconds=seconds)
            if save is not None:
                save(result)
            if progress is not None:
                progress(name, int(tested.sum()), planned)
        standing = int(result.correct.sum())
        stage = Stage(name, planned, planned - standing, standing / len(split), result.seconds)
        result = dataclasses.replace(
            result, stages=(*result.stages, stage), tested=None, seconds=0.0
        )
        if save is not None:
            save(result)
    return result


def _own_images(split: Samples, batch_size: int) -> Tensor:
    """The clean images, float32 [N, C, H, W] on the CPU, copied batch by batch."""
    every = torch.arange(len(split), device=split.labels.device).split(batch_size)
    whole: Tensor | None = None
    for index in every:
        x, _ = fetch(split, index)
        if whole is None:
            whole = torch.empty(len(split), *x.shape[1:])
        whole[index.cpu()] = x.cpu()
    assert whole is not None
    return whole


def _check_classes(model: nn.Module, split: Samples, version: str) -> None:
    """Raise ValueError, before any attack, if the model has too few classes (of finite logits) for a version's DLR."""
    least, loss = _CLASSES[version]
    x, _ = fetch(split, torch.zeros(1, dtype=torch.int64, device=split.labels.device))
    with attacked(model, "eval"), torch.no_grad():
        logits = logits_of(model, x)
    classes = int((logits != -torch.inf).sum())
    if classes < least:
        masked = " with finite logits" if classes < logits.shape[1] else ""
        raise ValueError(
            f"model: {classes} classes{masked}, expected at least {least} for AutoAttack's {version} version ({loss}); "
            "`attacks` may name others, such as APGDT(model, loss='cw')"
        )


def _check_attacks(model: nn.Module, attacks: Mapping[str, Attack]) -> None:
    if not attacks:
        raise ValueError("attacks: expected at least one")
    for name, attack in attacks.items():
        if not isinstance(attack, Attack):
            raise TypeError(
                f"attacks: {name!r} is {type(attack).__name__}, expected an attack of iaat_fast"
            )
        if attack.model is not unwrap_ddp(model):
            raise ValueError(f"attacks: {name!r} attacks another model")
        if attack.targeted is True:
            raise ValueError(f"attacks: {name!r} takes targets, expected one that takes classes")
        validate.one_box(f"attacks[{name!r}]", attack, "eps is on the scale of images in [0, 1]")


def _check_resume(resume: AutoAttackResult, *, samples: int, **asked: Any) -> None:
    found = {**{name: getattr(resume, name) for name in asked}, "samples": len(resume.correct)}
    for name, value in {**asked, "samples": samples}.items():
        if found[name] != value:
            raise ValueError(f"resume: of {name} {found[name]}, expected {value}")
