# %% [markdown]
# # How robust is a network?
#
# Two small networks on handwritten digits, one trained as usual, one on adversarial images; then their accuracy over
# the radius of the attack. Takes seconds on a CPU. Needs `pip install '.[train]'`.

# %%
import matplotlib.pyplot as plt

from iaat_fast.attacks import PGD
from iaat_fast.evaluate import accuracy, robust_accuracy
from iaat_fast.train import fit, preset

small = {"model": {"width": 8}, "optim": {"epochs": 2}}
results = {
    method: fit(preset("digits", method=method, **small), quiet=True) for method in ("clean", "adv")
}
test = results["clean"].data.test.first(128)

# %% [markdown]
# Radii are on the scale of the images, [0, 1]. Digits are 8 × 8 images with hard edges, so that a radius of 51/255, far
# too much for a photograph, is moderate here.

# %%
radii = [0.0, 0.05, 0.1, 0.15, 0.2, 0.25]
curves = {}
for method, result in results.items():
    curves[method] = [accuracy(result.model, test)] + [
        robust_accuracy(result.model, test, eps=eps, alpha=eps / 4, steps=10, restarts=2).accuracy
        for eps in radii[1:]
    ]
    plt.plot(radii, curves[method], marker="o", label=method)
plt.xlabel("radius of the attack")
plt.ylabel("accuracy")
plt.legend()
plt.show()

# %%
assert curves["adv"][-2] > curves["clean"][-2]
assert all(before >= after for before, after in zip(curves["adv"], curves["adv"][1:], strict=False))

# %% [markdown]
# What an attack makes of a digit. The images of a split are uint8, `gather` returns them as floats.

# %%
index = test.labels.new_tensor([0, 1, 2, 3])
x, y = test.gather(index), test.labels[index]
x_adv = PGD(results["clean"].model, eps=0.2, alpha=0.05, steps=10, seed=0)(x, y)
figure, axes = plt.subplots(2, 4)
for axis, image in zip(axes.flat, [*x, *x_adv], strict=True):
    axis.imshow(image[0], cmap="gray", vmin=0, vmax=1)
    axis.axis("off")
plt.show()
