# %% [markdown]
# # IAAT in a loop of your own
#
# What instance adaptive adversarial training takes besides a training loop of plain PyTorch: the number of each sample
# in its data set, a memory of the samples' radii, and an attack. Here on handwritten digits; needs scikit-learn.

# %%
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from iaat_fast import data, models
from iaat_fast.attacks import PGD
from iaat_fast.epsilon import EpsilonMemory
from iaat_fast.evaluate import accuracy, robust_accuracy

torch.manual_seed(0)
digits = data.load("digits")
x, y = data.fetch(digits.train, torch.arange(256))
# The third column numbers the samples: whatever the loader shuffles, a radius stays with its sample.
loader = DataLoader(TensorDataset(x, y, torch.arange(len(x))), batch_size=64, shuffle=True)

# %% [markdown]
# Radii and steps are on the [0, 1] scale; digits withstand more than natural images do. The attack puts the model in
# eval mode and leaves it as it was.

# %%
EPS, ALPHA, WARM_UP, EPOCHS = 0.2, 0.05, 1, 3

model = models.build("digits-cnn", width=8)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
pgd = PGD(model, EPS, ALPHA, 5)
memory = EpsilonMemory(len(x), gamma=ALPHA, beta=0.2, strategy="lazy")

# %% [markdown]
# During the warm-up all samples have one radius. Then Algorithm 2 moves each sample's: up where the attack does not
# fool the network, down where it does.

# %%
for epoch in range(EPOCHS):
    for images, labels, index in loader:
        if epoch < WARM_UP:
            x_adv = pgd(images, labels, eps=memory.warm_up(index, EPS), index=index)
        else:
            x_adv = memory.select(pgd, images, labels, index).x_adv
        loss = F.cross_entropy(model(x_adv), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    low, high = memory.values.aminmax()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}, radii {low:.3f} to {high:.3f}")

# %%
assert (memory.values > EPS).any()
assert (memory.values < EPS).any()

# %% [markdown]
# The radii belong to a checkpoint as the weights do.

# %%
torch.save({"model": model.state_dict(), "epsilon": memory.values}, "checkpoint.pt")
checkpoint = torch.load("checkpoint.pt")
again = EpsilonMemory(len(x), gamma=ALPHA, beta=0.2, strategy="lazy")
again.load(checkpoint["epsilon"])
assert torch.equal(again.values, memory.values)

# %%
test = digits.test.first(100)
robust = robust_accuracy(model, test, eps=EPS, alpha=ALPHA, steps=10, restarts=1)
print(f"natural {accuracy(model, test):.0%}, under PGD-10 {robust.accuracy:.0%}")
