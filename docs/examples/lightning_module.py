# %% [markdown]
# # IAAT in Lightning
#
# Instance adaptive adversarial training as a `LightningModule`: the memory of the radii is kept in Lightning's
# checkpoints, next to the weights. On handwritten digits; needs lightning and scikit-learn.

# %%
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from iaat_fast import data, models
from iaat_fast.attacks import PGD
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.evaluate import robust_accuracy

EPS, ALPHA, WARM_UP, EPOCHS = 0.2, 0.05, 1, 2


# %% [markdown]
# Batches are images in [0, 1], labels, and the samples' numbers.


# %%
class InstanceAdaptive(lightning.LightningModule):
    def __init__(self, model: nn.Module, samples: int) -> None:
        super().__init__()
        self.model = model
        self.pgd = PGD(model, EPS, ALPHA, 5)
        self.memory = EpsilonMemory(samples, gamma=ALPHA, beta=0.2, strategy="lazy")

    def on_fit_start(self) -> None:
        self.memory.values = self.memory.values.to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], _: int) -> Tensor:
        x, y, index = batch
        if self.current_epoch < WARM_UP:
            x_adv = self.pgd(x, y, eps=self.memory.warm_up(index, EPS), index=index)
        else:
            x_adv = self.memory.select(self.pgd, x, y, index).x_adv
        return F.cross_entropy(self.model(x_adv), y)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=0.01)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epsilon"] = self.memory.values

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.memory.load(checkpoint["epsilon"])


# %%
lightning.seed_everything(0, verbose=False)
digits = data.load("digits")
x, y = data.fetch(digits.train, torch.arange(256))
# The third column numbers the samples: whatever the loader shuffles, a radius stays with its sample.
loader = DataLoader(TensorDataset(x, y, torch.arange(len(x))), batch_size=64, shuffle=True)

module = InstanceAdaptive(models.build("digits-cnn", width=8), len(x))
trainer = lightning.Trainer(
    max_epochs=EPOCHS, devices=1, logger=False, enable_checkpointing=False, log_every_n_steps=1
)
trainer.fit(module, loader)
trainer.save_checkpoint("iaat.ckpt")

# %%
radii = module.memory.values
assert (radii > EPS).any()
assert (radii < EPS).any()
again = InstanceAdaptive.load_from_checkpoint("iaat.ckpt", model=module.model, samples=len(x))
assert torch.equal(again.memory.values.cpu(), radii.cpu())

# %%
test = digits.test.first(100).to(module.device)
robust = robust_accuracy(module.model, test, eps=EPS, alpha=ALPHA, steps=10, restarts=1)
low, high = radii.aminmax()
print(f"radii {low:.3f} to {high:.3f}, under PGD-10 {robust.accuracy:.0%}")
