"""How attacks that are crafted on each of some models transfer to others: a matrix of accuracies."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from iaat_fast import validate
from iaat_fast.attacks import inputs
from iaat_fast.attacks.model import attacked, logits_of
from iaat_fast.data import fetch
from iaat_fast.evaluate.accuracies import natural_verdicts, samples_for
from iaat_fast.evaluate.results import SCHEMA, refuse_newer
from iaat_fast.evaluate.shared_pgd import correct
from iaat_fast.malloc import no_malloc_trim
from iaat_fast.storage import read_json, write_json

KIND = "transfer-matrix"
"""What the file of a matrix says it is."""

Models = Mapping[str, nn.Module] | Sequence[nn.Module]


class Crafts(Protocol):
    """An attack, as `attacks` and `MultiAttack` are."""

    def __call__(self, x: Tensor, y: Tensor, *, index: Tensor, seed: int) -> Tensor: ...


@dataclasses.dataclass(frozen=True)
class TransferMatrix:
    """Accuracies of T models on images that were crafted on S models.

    sources, targets: names of the models.
    accuracies: float64 [S, T] on the CPU, in [0, 1]: of a target, on images crafted on a source.
    natural: float64 [T], of the targets, on the images as they are.
    n: how many images.
    attack: what they were crafted with, without the model: `VMIFGSM(eps=8/255, alpha=2/255, steps=10)`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    accuracies: Tensor
    natural: Tensor
    n: int
    attack: str = ""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON, which `load` reads and `python -m iaat_fast.report --transfer` shows.

        Raises:
            OSError: the file cannot be written; an earlier one stays as it was.
        """
        plain = {name: getattr(self, name) for name in ("sources", "targets", "n", "attack")}
        values = {name: getattr(self, name).tolist() for name in ("accuracies", "natural")}
        write_json(Path(path), {"schema": SCHEMA, "kind": KIND, **plain, **values})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TransferMatrix:
        """The matrix in a file of `save`.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is damaged, of a newer version, or holds something else; the message names it.
        """
        file = Path(path)
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file, expected one of TransferMatrix.save")
        content = read_json(file)
        if content.get("kind") != KIND:
            raise ValueError(f"{file}: no transfer matrix, expected a file of TransferMatrix.save")
        refuse_newer(file, content)
        try:
            made = cls(
                sources=tuple(map(str, content["sources"])),
                targets=tuple(map(str, content["targets"])),
                accuracies=torch.tensor(content["accuracies"], dtype=torch.float64, device="cpu"),
                natural=torch.tensor(content["natural"], dtype=torch.float64, device="cpu"),
                n=int(content["n"]),
                attack=str(content["attack"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: a damaged transfer matrix ({error!r})") from error
        for name, sides in (("accuracies", ("sources", "targets")), ("natural", ("targets",))):
            values, expected = getattr(made, name), [len(getattr(made, side)) for side in sides]
            if list(values.shape) != expected:
                raise ValueError(f"{file}: {name} {list(values.shape)}, expected {expected}")
            if not ((values >= 0) & (values <= 1)).all():
                raise ValueError(f"{file}: {name} beyond 0 to 1")
        if made.n < 1:
            raise ValueError(f"{file}: n is {made.n}, expected at least 1")
        return made

    def to_markdown(self) -> str:
        """A table in GitHub's Markdown, in percent: a row per source, a column per target; first natural accuracies.

        Accuracies of the source itself are in bold.
        """
        lines = [
            f"| crafted on ({self.n:,} images) | {' | '.join(map(_escaped, self.targets))} |",
            f"|---|{'---:|' * len(self.targets)}",
            f"| – | {' | '.join(f'{value:.2%}' for value in self.natural.tolist())} |",
        ]
        for source, row in zip(self.sources, self.accuracies.tolist(), strict=True):
            cells = (
                f"**{value:.2%}**" if target == source else f"{value:.2%}"
                for target, value in zip(self.targets, row, strict=True)
            )
            lines.append(f"| {_escaped(source)} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def transfer_matrix(
    models: Models,
    attack: Callable[[nn.Module], Crafts],
    data: Any,
    y: Any = None,
    *,
    targets: Models | None = None,
    batch_size: int = 256,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> TransferMatrix:
    """Craft images on each of some models, and classify them with others.

        matrix = transfer_matrix({"resnet": resnet, "vit": vit}, lambda model: VMIFGSM(model, 8 / 255), test)
        print(matrix.to_markdown())
        matrix.save("matrix.json")  # python -m iaat_fast.report runs/* --out report --transfer matrix.json

    Args:
        models: what images are crafted on, by name, or a sequence, named "0", "1" ...; an `Ensemble` is one of them.
            Each maps float32 images [N, C, H, W] in [0, 1] to logits [N, classes], and is as it was afterwards.
        attack: makes the attack on a model, `lambda model: MIFGSM(model, eps=8 / 255)`. Its `targeted` is not True,
            for the images' labels are what it is given.
        data, y: the images and their labels, as of `accuracy`.
        targets: what the images are tried on, as models; a name that is also in models is the same model. By default
            `models`.
        batch_size: images attacked at once.
        seed: of the attacks' draws, which follow the number of the image, so that no figure depends on the batch size.
        progress: called after each batch as progress(done, all), in images times sources.

    Returns:
        `TransferMatrix`. All images count, also those that a model gets wrong as they are. Each batch is crafted once,
        and shown to all targets at once; images are kept no longer.

    Raises:
        TypeError, ValueError: an argument is not as described, or a model has another number of classes; before any
            image is attacked.
    """
    validate.integer("batch_size", batch_size, 1)
    validate.int64("seed", seed)
    sources = _named("models", models)
    tried = sources if targets is None else _named("targets", targets)
    for name in sources.keys() & tried.keys():
        if sources[name] is not tried[name]:
            raise ValueError(
                f"targets: {name!r} is another model than that of models, expected another name"
            )
    split = samples_for(next(iter(sources.values())), data, y)
    _check_classes({**sources, **tried}, split)
    attacks = {name: attack(model) for name, model in sources.items()}
    for made in attacks.values():
        if not callable(made):
            raise TypeError(f"attack: made a {type(made).__name__}, expected an attack")
        if _is_targeted(made):
            raise ValueError("attack: targeted=True, expected an attack that takes true classes")
    n, device = len(split), split.labels.device
    natural = [
        int(natural_verdicts(model, split, batch_size=batch_size).sum()) for model in tried.values()
    ]
    right = torch.zeros(len(sources), len(tried), dtype=torch.int64)
    done = 0
    with no_malloc_trim(device):
        for s, crafts in enumerate(attacks.values()):
            for index in torch.arange(n, device=device).split(batch_size):
                x, labels = fetch(split, index)
                x_adv = crafts(x, labels, index=index, seed=seed)
                for t, model in enumerate(tried.values()):
                    with attacked(model, "eval"), torch.no_grad():
                        right[s, t] += int(correct(logits_of(model, x_adv), labels).sum())
                done += len(index)
                if progress is not None:
                    progress(done, n * len(sources))
    first, model = next(iter(attacks.values())), next(iter(sources.values()))
    return TransferMatrix(
        sources=tuple(sources),
        targets=tuple(tried),
        accuracies=right.double() / n,
        natural=torch.tensor(natural, dtype=torch.float64, device="cpu") / n,
        n=n,
        attack=_said(first, model),
    )


def _named(argument: str, models: Models) -> dict[str, nn.Module]:
    if isinstance(models, nn.Module):
        raise TypeError(
            f"{argument}: {type(models).__name__}, expected several models, by name or in a sequence"
        )
    named = (
        dict(models) if isinstance(models, Mapping) else {str(k): m for k, m in enumerate(models)}
    )
    if not named:
        raise ValueError(f"{argument}: none, expected at least 1")
    for name, model in named.items():
        if not isinstance(name, str):
            raise TypeError(f"{argument}: {name!r} as a name, expected a str")
        if not isinstance(model, nn.Module):
            raise TypeError(f"{argument}[{name!r}]: {type(model).__name__}, expected an nn.Module")
    return named


def _check_classes(models: dict[str, nn.Module], split: Any) -> None:
    x, _ = fetch(split, torch.zeros(1, dtype=torch.int64, device=split.labels.device))
    classes = {}
    for name, model in models.items():
        with attacked(model, "eval"), torch.no_grad():
            classes[name] = logits_of(model, x).shape[1]
    if len(set(classes.values())) > 1:
        raise ValueError(f"models: of {classes} classes, expected the same of each")
    highest, count = int(split.labels.max()), next(iter(classes.values()))
    if highest >= count:
        raise ValueError(inputs.out_of_range(highest, count))


def _said(attack: Crafts, model: nn.Module) -> str:
    """The repr of an attack of this library without its model; the class of another."""
    if type(attack).__repr__ is object.__repr__ or inspect.isroutine(attack):
        return getattr(attack, "__name__", type(attack).__name__)
    said, name = repr(attack), type(model).__name__
    return said.replace(f"({name}, ", "(", 1).replace(f"({name})", "()", 1)


def _is_targeted(attack: object) -> bool:
    members = getattr(attack, "attacks", [attack])
    return any(getattr(member, "targeted", False) is True for member in members)


def _escaped(name: str) -> str:
    return name.replace("|", "\\|")
