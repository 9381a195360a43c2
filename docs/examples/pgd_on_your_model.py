# %% [markdown]
# # PGD on your model
#
# What to change is at the top: the network, its normalisation, and the images. Everything below stays.

# %%
import torch
from torch import nn

from iaat_fast.attacks import PGD, masking_report
from iaat_fast.models import STATISTICS, normalized

network = nn.Sequential(
    nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)
)  # yours, with its weights loaded
model = normalized(network, *STATISTICS["cifar10"])

images = torch.rand(32, 3, 32, 32)  # float32 in [0, 1]
labels = torch.randint(0, 10, (32,))
device = "cuda" if torch.cuda.is_available() else "cpu"

# %% [markdown]
# `precision="auto"` takes gradients in half precision where the hardware multiplies matrices in it. Which images are
# fooled is decided by the model itself. Every batch should have the same size on a GPU, where the steps are captured
# once per shape.

# %%
model = model.to(device)
pgd = PGD(model, eps=8 / 255, alpha=2 / 255, steps=10, restarts=2, precision="auto", seed=0)

adversarial, natural, robust = [], 0, 0
for x, y in zip(images.split(16), labels.split(16), strict=True):
    x, y = x.to(device), y.to(device)
    x_adv = pgd(x, y)
    adversarial.append(x_adv.cpu())
    with torch.no_grad():
        right = model(x).argmax(1) == y
        natural += int(right.sum())
        robust += int((right & (model(x_adv).argmax(1) == y)).sum())

print(f"natural accuracy {natural / len(images):.1%}, robust {robust / len(images):.1%}")
print("gradients from", pgd.network.gradient_source)

# %% [markdown]
# No pixel has moved by more than the radius, none has left [0, 1]:

# %%
moved = (torch.cat(adversarial) - images).abs().max()
assert moved <= 8 / 255 + 1e-6
assert torch.cat(adversarial).min() >= 0
assert torch.cat(adversarial).max() <= 1

# %% [markdown]
# A model whose gradients vanish looks robust and is not. The report says how many samples that concerns.

# %%
print(masking_report(model, images[:16].to(device), labels[:16].to(device), eps=8 / 255, steps=5))
