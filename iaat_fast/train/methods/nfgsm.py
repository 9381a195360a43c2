"""Single-step adversarial training from noisy images: N-FGSM (de Jorge et al. 2022) and Fast-AT (Wong et al. 2020)."""

from __future__ import annotations

from torch import nn

from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.train.config import TrainConfig
from iaat_fast.train.methods.adv import Adversarial
from iaat_fast.train.methods.attack import NoisyPGD, attack_arguments
from iaat_fast.train.methods.passes import Fooled, Stage, update


class NoisyFGSM(Adversarial):
    """Cross-entropy on images one step along the sign of the gradient away from noise.

        noise ~ U(-nfgsm_noise * eps, nfgsm_noise * eps)
        x_adv = x + noise + nfgsm_step * eps * sign(gradient of CE at x + noise)

                    nfgsm_noise     nfgsm_step      nfgsm_project
        N-FGSM      2               1               off
        Fast-AT     1               1.25            on: back within eps of x

    Images are clamped to [0, 1] before and after the step, as in the released codes. Reports call a run that projects,
    from noise 1, Fast-AT.

    Unlike in the released codes, BatchNorm is in evaluation mode in the attack (attack.bn), and the schedule is the
    preset's, where they take 30 and 15 epochs with a cyclic learning rate.

    A network may learn to mask the gradient of the single step: its accuracy on training images rises, and that under
    PGD falls to 0 within an epoch (catastrophic overfitting). So the closing evaluation says more than the training's
    robust accuracy.

    Source: de Jorge, Bibi, Volpi, Sanyal, Torr, Rogez, Dokania 2022, "Make some noise: reliable and efficient
        single-step adversarial training", Algorithm 1; Wong, Rice, Kolter 2020, "Fast is better than free: revisiting
        adversarial training", Algorithm 3; and the codes released with them.
    """

    attack: NoisyPGD

    def __init__(self, config: TrainConfig, model: nn.Module, memory: EpsilonMemory) -> None:
        super().__init__(config, model, memory)
        own = config.baseline
        arguments = attack_arguments(config.attack)
        arguments |= {"steps": 1, "alpha": lambda eps: own.nfgsm_step * eps}
        self.attack = NoisyPGD(model, **arguments)
        self.attack.noise, self.attack.project = own.nfgsm_noise, own.nfgsm_project

    @classmethod
    def passes(cls, config: TrainConfig, phase: str, fooled: Fooled) -> tuple[Stage, ...]:
        return Stage(name="training attack", kind="gradient", passes=1), update()
