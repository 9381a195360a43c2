"""PGD of other libraries, each the way its documentation calls it; one that is not installed is missing."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

import torch
from torch import Tensor

from benchmarks.attacks.contender import Attack, Contender, Missing, Setting, Target

PACKAGES = ("torchattacks", "foolbox", "adversarial-robustness-toolbox")


def versions() -> dict[str, str | None]:
    """The installed version of each library, None where it is missing."""
    found: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def by_torchattacks(target: Target, setting: Setting) -> Attack:
    attack = _imported("torchattacks").PGD(
        target.model,
        eps=setting.eps,
        alpha=setting.alpha,
        steps=setting.steps,
        random_start=setting.random_start,
    )
    return attack


def by_foolbox(target: Target, setting: Setting) -> Attack:
    """`run`, without the forward in which foolbox's `__call__` looks at the verdicts."""
    foolbox = _imported("foolbox")
    model = foolbox.PyTorchModel(target.model, bounds=(0, 1), device=target.x.device)
    attack = foolbox.attacks.LinfPGD(
        abs_stepsize=setting.alpha, steps=setting.steps, random_start=setting.random_start
    )
    misclassified = foolbox.criteria.Misclassification
    return lambda x, y: attack.run(model, x, misclassified(y), epsilon=setting.eps)


def by_art(target: Target, setting: Setting) -> Attack:
    """numpy in and out, and two passes at the end for the verdicts, which ART always makes."""
    classification = _imported("art.estimators.classification")
    evasion = _imported("art.attacks.evasion")
    classifier = classification.PyTorchClassifier(
        target.model,
        torch.nn.CrossEntropyLoss(),
        input_shape=tuple(target.x.shape[1:]),
        nb_classes=target.classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if target.x.is_cuda else "cpu",
    )
    attack = evasion.ProjectedGradientDescent(
        classifier,
        norm="inf",
        eps=setting.eps,
        eps_step=setting.alpha,
        max_iter=setting.steps,
        num_random_init=int(setting.random_start),
        batch_size=len(target.x),
        verbose=False,
    )

    def run(x: Tensor, y: Tensor) -> Tensor:
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)

    return run


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    # A library built for other versions breaks in its own ways while it is imported.
    except Exception as error:
        raise Missing(f"{module}: {type(error).__name__}: {error}") from error


PEERS = (
    Contender(
        name="torchattacks", kind="peer", make=by_torchattacks, what="torchattacks.PGD", plain=True
    ),
    Contender(
        name="foolbox", kind="peer", make=by_foolbox, what="foolbox.attacks.LinfPGD", plain=True
    ),
    Contender(
        name="art",
        kind="peer",
        make=by_art,
        what="adversarial-robustness-toolbox, ProjectedGradientDescent",
        plain=True,
    ),
)
