# %% [markdown]
# # A radius for every sample
#
# Instance Adaptive Adversarial Training (Balaji, Goldstein and Hoffman 2019) finds a radius for every training image.
# Here on handwritten digits, in seconds. Needs `pip install '.[train]'`.

# %%
import matplotlib.pyplot as plt
import torch

from iaat_fast.attacks import PGD, scaled_step
from iaat_fast.train import fit, preset

config = preset(
    "digits", method="iaat", model={"width": 8}, optim={"epochs": 2}, epsilon={"warmup_epochs": 1}
)
result = fit(config, quiet=True)

# %% [markdown]
# After one epoch at the radius of the warm-up every image's radius moves: up where the attack does not fool
# the network, down where it does.

# %%
radii = result.epsilon
print(f"radii: {radii.mean():.3f} ± {radii.std():.3f}, from {radii.min():.3f} to {radii.max():.3f}")
plt.hist(radii, bins=30)
plt.xlabel("radius")
plt.show()

# %%
assert radii.shape == (len(result.data.train),)
assert radii.std() > 0

# %% [markdown]
# The images with the smallest radii are those near a boundary, badly written ones among them.

# %%
order = radii.argsort()
hardest = order[:8]
figure, axes = plt.subplots(1, 8)
for axis, image, number in zip(axes, result.data.train.gather(hardest), hardest, strict=True):
    axis.imshow(image[0], cmap="gray")
    axis.set_title(int(result.data.train.labels[number]))
    axis.axis("off")
plt.show()

# %% [markdown]
# An attack takes such radii as they are, a value per image, with a step size of its own for each.

# %%
index = torch.cat([order[:32], order[-32:]])
x, y = result.data.train.gather(index), result.data.train.labels[index]
x_adv = PGD(result.model, alpha=scaled_step(10), steps=10, seed=0)(x, y, eps=radii[index])
distance = (x_adv - x).abs().flatten(1).amax(1)
assert (distance <= radii[index] + 1e-6).all()
