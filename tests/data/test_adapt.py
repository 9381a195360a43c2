"""Images and labels, however they are held, are the same samples; what could be meant in two ways is refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from iaat_fast.data import DatasetSplit, FloatSplit, Split, as_image_data, as_samples, fetch

N = 11
PIXELS = torch.randint(
    256, (N, 8, 6, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
LABELS = torch.arange(N) % 4
FLOATS = PIXELS.permute(0, 3, 1, 2) / 255


class Items(Dataset[Any]):
    """Items made by a function of their numbers, which are counted."""

    def __init__(self, item: Callable[[int], Any], n: int = N) -> None:
        self.item, self.n = item, n
        self.asked: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, number: int) -> Any:
        self.asked.append(number)
        return self.item(number)


def as_pil(number: int) -> tuple[Any, int]:
    image = pytest.importorskip("PIL.Image")
    return image.fromarray(PIXELS[number].numpy()), int(LABELS[number])


def as_floats(number: int) -> tuple[torch.Tensor, int]:
    return FLOATS[number], int(LABELS[number])


FORMS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "uint8 tensors": lambda: (PIXELS, LABELS),
    "uint8 numpy": lambda: (PIXELS.numpy(), LABELS.numpy().astype(np.int32)),
    "floats": lambda: (FLOATS, LABELS),
    "floats that require gradients": lambda: (FLOATS.clone().requires_grad_(), LABELS),
    "float64 numpy": lambda: (FLOATS.double().numpy(), LABELS.tolist()),
    "read-only and turned numpy": lambda: (
        np.broadcast_to(PIXELS.flip(2).numpy()[:, :, ::-1], PIXELS.shape),
        LABELS.to(torch.uint8),
    ),
    "a pair": lambda: ((PIXELS, LABELS),),
    "a split": lambda: (Split(PIXELS, LABELS),),
    "a TensorDataset": lambda: (TensorDataset(FLOATS, LABELS),),
    "a DataLoader of one": lambda: (DataLoader(TensorDataset(FLOATS, LABELS), batch_size=3),),
    "a Dataset of PIL images": lambda: (Items(as_pil),),
    "a Dataset of floats": lambda: (Items(as_floats),),
    "a Dataset of uint8 numpy": lambda: (
        Items(lambda k: (PIXELS[k].numpy(), np.int64(LABELS[k]))),
    ),
    "a Subset": lambda: (Subset(Items(lambda k: as_floats(k - 5), N + 5), range(5, N + 5)),),
    "a DataLoader": lambda: (DataLoader(Items(as_floats), batch_size=4),),
    "a DataLoader with a collate function": lambda: (
        DataLoader(Items(lambda k: k), collate_fn=lambda ks: (FLOATS[ks], LABELS[ks])),
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_same_samples(form: str) -> None:
    samples = as_samples(*FORMS[form]())
    assert (len(samples), samples.channels) == (N, 3)
    index = torch.tensor([7, 0, 7, 10])
    x, y = fetch(samples, index)
    assert torch.equal(x, FLOATS[index])
    assert x.is_contiguous()
    assert y.tolist() == LABELS[index].tolist()
    assert torch.equal(samples.labels, LABELS)
    assert len(samples.first(4)) == 4
    assert fetch(samples, index[:0])[0].shape == (0, 3, 8, 6)
    names = [name for name, _ in samples.identity()]
    assert set(names) == {"images", "labels"}


def test_tensors_and_arrays_are_not_copied() -> None:
    assert as_samples(PIXELS, LABELS).images.data_ptr() == PIXELS.data_ptr()  # type: ignore[attr-defined]
    floats = FLOATS.double().numpy()
    assert as_samples(floats, LABELS).images.data_ptr() == floats.ctypes.data  # type: ignore[attr-defined]


def test_float_images_stay_where_they_are_and_batches_go_to_the_device() -> None:
    samples = as_samples(FLOATS, LABELS, device="meta")
    assert samples.labels.device.type == "meta"
    assert isinstance(samples, FloatSplit)
    assert samples.images.device.type == "cpu"
    assert samples.gather(torch.arange(3)).device.type == "meta"


def test_a_dataset_is_asked_for_what_is_needed_and_never_held() -> None:
    items = Items(as_floats)
    items.targets = LABELS.tolist()  # type: ignore[attr-defined]
    samples = as_samples(items)
    items.asked.clear()
    fetch(samples, torch.tensor([9, 2]))
    assert items.asked == [9, 2]


def test_labels_that_a_dataset_notes_are_not_taken_where_its_items_have_others() -> None:
    items = Items(as_floats)
    items.targets = (LABELS + 1).tolist()  # type: ignore[attr-defined]
    assert torch.equal(as_samples(items).labels, LABELS)


def test_asking_a_dataset_draws_nothing_from_the_callers_generator() -> None:
    before = torch.get_rng_state()
    fetch(as_samples(DataLoader(Items(as_floats))), torch.arange(3))
    assert torch.equal(before, torch.get_rng_state())


def test_the_workers_of_a_loader_decode_its_batches() -> None:
    loader = DataLoader(Items(as_floats), batch_size=4, num_workers=2)
    samples = as_samples(loader)
    index = torch.tensor([3, 1, 9, 4, 4])
    assert torch.equal(fetch(samples, index)[0], FLOATS[index])
    assert loader.dataset.asked == []  # type: ignore[attr-defined]  # of this process


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return map(as_floats, range(N))


def refused(*data: Any) -> str:
    with pytest.raises((TypeError, ValueError)) as caught:
        as_samples(*data)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((FLOATS * 255, LABELS), "x: values from 0 to 255, expected [0, 1]; divide by 255?"),
        ((FLOATS * 2 - 1, LABELS), "expected [0, 1]; normalisation belongs in the model"),
        ((FLOATS * torch.nan, LABELS), "x: values from nan to nan, expected [0, 1]"),
        ((PIXELS / 255, LABELS), "x: floats [11, 8, 6, 3] look like [N, H, W, C]"),
        ((PIXELS.permute(0, 3, 1, 2), LABELS), "x: uint8 [11, 3, 8, 6] looks like [N, C, H, W]"),
        ((PIXELS[:, :3], LABELS), "x: shape [11, 3, 6, 3], whose channels may be first or last"),
        ((FLOATS[..., :1], LABELS), "x: shape [11, 3, 8, 1], whose channels may be first or last"),
        ((PIXELS.int(), LABELS), "x: torch.int32, expected uint8 [N, H, W, C] or floats"),
        ((FLOATS[0], LABELS), "x: shape [3, 8, 6], expected uint8"),
        ((PIXELS.tolist(), LABELS), "x: list, expected a tensor or a numpy array"),
        ((np.array(["a"]), LABELS), "x: numpy <U1, expected a dtype that torch has"),
        ((FLOATS[:0], LABELS[:0]), "x: no images, expected at least 1"),
        ((FLOATS, LABELS[:9]), "y: shape [9], expected [11], one label per image"),
        ((FLOATS, LABELS[:, None]), "y: shape [11, 1], expected [11]"),
        ((FLOATS, torch.eye(11)), "y: shape [11, 11], expected [11], class numbers (of one-hot"),
        ((FLOATS, LABELS.float()), "y: torch.float32, expected whole numbers"),
        ((FLOATS, LABELS > 2), "y: torch.bool, expected whole numbers"),
        ((FLOATS, LABELS - 1), "y: -1, expected a class >= 0"),
        ((FLOATS, ["cat"] * N), "y: not a sequence of numbers"),
        (((FLOATS, LABELS), 0.03), "y: 0.03, expected the labels of x, [N]; a radius is passed as"),
        ((FLOATS,), "y: None, expected the labels of x"),
        (((FLOATS, None),), "y: None, expected the labels of x"),
        (((FLOATS, LABELS, LABELS),), "data: a tuple of 3, expected (x, y)"),
        ((7,), "data: int, expected (x, y), a Dataset with __getitem__ and __len__"),
        (({"x": FLOATS, "y": LABELS},), "data: dict, expected (x, y), a Dataset with"),
        ((Stream(),), "data: Stream, expected (x, y), a Dataset with"),
        ((DataLoader(Stream()),), "data: a DataLoader of an IterableDataset"),
        ((Items(as_floats, 0),), "data: no samples, expected at least 1"),
        (
            (DataLoader(Items(as_floats), shuffle=True),),
            "expected shuffle=False: verdicts are kept",
        ),
        ((DataLoader(Items(as_floats), 4, drop_last=True),), "drop_last=True, which leaves out 3"),
        (
            (DataLoader(Items(as_floats), batch_size=None),),
            "batch_sampler NoneType, expected batch",
        ),
        ((Items(lambda k: {"image": 0}),), "data: a sample is a dict, expected (image, label)"),
        ((Items(lambda k: (FLOATS[k], 0, 0)),), "data: a sample is a tuple of 3, expected"),
        ((Items(lambda k: (FLOATS[k], 1.0)),), "data: a label is 1.0, expected an int"),
        (
            (Items(lambda k: (FLOATS[k, :, : 8 - k % 2], 1)),),
            "data: images of shapes [3, 7, 6] and",
        ),
        ((Items(lambda k: (FLOATS[k] * 255, 1)),), "data: values from 0 to 255, expected [0, 1]"),
        ((Items(lambda k: (torch.rand(3, 8, 8), 1)),), "data: a sample asked for twice is not the"),
    ],
)
def test_what_could_be_meant_in_two_ways_is_refused(data: tuple[Any, ...], message: str) -> None:
    assert message in refused(*data)


def test_a_pil_image_of_another_mode_is_refused() -> None:
    image = pytest.importorskip("PIL.Image")
    items = Items(lambda k: (image.fromarray(PIXELS[k].numpy()).convert("RGBA"), 0))
    assert "a PIL image of mode RGBA, expected L or RGB" in refused(items)


def test_labels_that_change_are_found_where_they_are_read() -> None:
    items = Items(as_floats)
    samples = as_samples(items)
    items.item = lambda k: (FLOATS[k], int(LABELS[k]) + (k == 9))
    with pytest.raises(ValueError, match="sample 9 has label 2, expected 1, which it had at first"):
        fetch(samples, torch.tensor([2, 9]))


@pytest.mark.parametrize("form", FORMS)
def test_training_holds_every_form_as_the_pixels_that_it_was_made_of(form: str) -> None:
    given = FORMS[form]()
    data = as_image_data(given[0] if len(given) == 1 else given, (PIXELS, LABELS), name="own")
    assert isinstance(data.train, Split)
    assert torch.equal(data.train.images, PIXELS)
    assert torch.equal(data.train.labels, LABELS)
    assert (data.name, data.num_classes) == ("own", 4)


def test_training_says_what_it_holds_and_refuses_what_is_between_two_pixel_values(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "iaat_fast"):
        as_image_data(Items(as_floats), (PIXELS, LABELS), name="own")
    assert caplog.messages == ["train: 11 images held in memory, 0 MiB"]
    half = FLOATS * 0 + 0.5
    with pytest.raises(
        ValueError, match=r"^test: x: a pixel of 127\.5/255, expected whole numbers"
    ):
        as_image_data((PIXELS, LABELS), (half, LABELS), name="own")
    with pytest.raises(ValueError, match=r"^train: y: shape \[9\]"):
        as_image_data((PIXELS, LABELS[:9]), (PIXELS, LABELS), name="own")


def test_samples_of_a_dataset_are_samples() -> None:
    assert isinstance(as_samples(Items(as_floats)), DatasetSplit)
    samples = as_samples(Items(as_floats))
    assert as_samples(samples) is samples
