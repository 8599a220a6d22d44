"""The loader's views against plain PIL and numpy, and its independence of batches and history."""

import errno
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import transforms

from harness.base import rng
from harness.base.errors import UserError
from harness.images import cpu as cpu_views
from harness.images import decoding
from harness.images import loader as pipeline
from harness.images.loader import ImageLoader, decoder_name
from harness.images.views import Transform, View
from tests.gpu.emulator import emulated

HEIGHT, WIDTH = 64, 32
SEED = 11
VIEWS = {
    "main": View(flip=0.5, pad=3, erase=0.5),
    "first": View(flip=0.5, pad=3, erase=0.5, erase_area=(0.33, 1 / 3)),
    "plain": View(),
}


@pytest.fixture
def make_loader() -> Iterator[type]:
    made = []

    def make(paths: Sequence[str], **changes: object) -> ImageLoader:
        names = {field.name for field in fields(Transform)} & changes.keys()
        transform = replace(
            Transform(HEIGHT, WIDTH, "bicubic", views=VIEWS),
            **{name: changes.pop(name) for name in names},
        )
        options: dict = {"batch_size": 32, "seed": SEED, "threads": 1, "device": "cpu"}
        made.append(ImageLoader(paths, transform, **(options | changes)))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


def batches(order: Sequence[int] | np.ndarray, size: int) -> list[np.ndarray]:
    order = np.asarray(order, dtype=np.int64)
    return [order[start : start + size] for start in range(0, len(order), size)]


def run(loader: ImageLoader, size: int, epoch: int = 1, order: object = range(64)) -> dict:
    """All batches of an epoch, joined; positions are 0, 1, ... in the order given."""
    rows = batches(order, size)
    made = list(loader.epoch(rows, batches(range(len(order)), size), epoch=epoch))
    assert [len(batch["rows"]) for batch in made] == [len(batch) for batch in rows]
    return {name: torch.cat([batch[name] for batch in made]) for name in made[0]}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def grey_levels(view: Tensor) -> np.ndarray:
    """[B, 3, H, W] in -1 .. 1 back to [B, H, W, 3] in 0 .. 255."""
    return view.permute(0, 2, 3, 1).numpy() * 127.5 + 127.5


def test_views_have_the_size_asked_for_and_values_from_minus_one_to_one(make_loader, photos):
    views = {name: View(flip=0.5, pad=3) if name == "main" else View() for name in ("main", "test")}
    made = run(make_loader(photos, views=views), 32)
    assert made["rows"].tolist() == list(range(64))
    assert made["rows"].dtype == torch.int64
    for name in views:
        assert made[name].shape == (64, 3, HEIGHT, WIDTH)
        assert made[name].dtype == torch.float32
        assert made[name].min() == -1
        assert made[name].max() == 1


@pytest.mark.parametrize(
    ("resize", "kernel"),
    [("bicubic", Image.Resampling.BICUBIC), ("bilinear", Image.Resampling.BILINEAR)],
)
def test_resize_is_that_of_pil_within_two_grey_levels(make_loader, photos, resize, kernel):
    made = grey_levels(run(make_loader(photos, views={"test": View()}, resize=resize), 32)["test"])
    for view, path in zip(made, photos, strict=True):
        image = Image.open(path)
        difference = np.abs(view - np.asarray(image.resize((WIDTH, HEIGHT), kernel), float))
        shrinks = image.width > WIDTH or image.height > HEIGHT
        assert difference.max() < (2.5 if shrinks else 1e-3)
        assert difference.mean() < 0.25


def test_an_untouched_view_is_that_of_torchvision_to_the_bit(make_loader, photos):
    small = photos[::4]
    made = run(make_loader(small, views={"test": View()}), 16, order=range(16))["test"]
    transform = transforms.Compose([
        transforms.Resize((HEIGHT, WIDTH), interpolation=transforms.InterpolationMode.BICUBIC),
        transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3),
    ])
    assert torch.equal(made, torch.stack([transform(Image.open(path)) for path in small]))


@pytest.mark.parametrize("pad", [3, WIDTH + 9])
def test_mirror_and_crop_are_those_of_pil_on_the_resized_image(make_loader, photos, pad):
    flip, views = 0.5, {"main": View(flip=0.5, pad=pad), "other": View(flip=0.5, pad=pad)}
    resized = grey_levels(run(make_loader(photos, views={"test": View()}), 32)["test"])
    made = run(make_loader(photos, views=views), 32, epoch=5)
    for index, name in enumerate(views):
        numbers = rng.uniform(SEED, 5, np.arange(64, dtype=np.int64), index, 3)
        for view, source, (mirror, x, y) in zip(made[name], resized, numbers, strict=True):
            image = Image.fromarray(source.round().astype(np.uint8))
            image = ImageOps.expand(ImageOps.mirror(image) if mirror < flip else image, pad)
            left, top = int(x * (2 * pad + 1)), int(y * (2 * pad + 1))
            crop = np.asarray(image.crop((left, top, left + WIDTH, top + HEIGHT)), np.float32)
            expected = (crop / 255 - 0.5) / 0.5
            np.testing.assert_allclose(view.permute(1, 2, 0).numpy(), expected, atol=1e-6)


def test_flips_and_crops_are_equally_likely(make_loader, tmp_path):
    # Each pixel's colour says where it is: red its column, green its row.
    rows, columns = np.mgrid[0:16, 0:8]
    Image.fromarray(
        np.stack([columns * 20 + 20, rows * 12 + 20, rows * 0], axis=-1).astype(np.uint8)
    ).save(tmp_path / "map.png")
    count = 4_000
    loader = make_loader(
        [str(tmp_path / "map.png")], height=16, width=8, batch_size=500,
        views={"main": View(flip=0.5, pad=2)},
    )
    made = grey_levels(run(loader, 500, order=np.zeros(count, dtype=np.int64))["main"])
    column, row = (made[:, 8, 4, 0].round() - 20) / 20, (made[:, 8, 4, 1].round() - 20) / 12
    mirrored = made[:, 8, 3, 0] > made[:, 8, 4, 0]
    left = np.where(mirrored, 3 - column, column - 4)
    assert abs(mirrored.sum() - count / 2) < 4 * np.sqrt(count / 4)
    for place in (left[mirrored], left[~mirrored], row - 8):
        values, counts = np.unique(place, return_counts=True)
        assert values.tolist() == [-2, -1, 0, 1, 2]
        expected = counts.sum() / 5
        assert ((counts - expected) ** 2 / expected).sum() < 20  # 5e-4 for four degrees


@pytest.mark.parametrize("area", [(0.02, 1 / 3), (0.33, 1 / 3)])
def test_the_erased_share_of_a_view_is_within_its_bounds(make_loader, tmp_path, area):
    Image.new("RGB", (40, 80), (10, 200, 30)).save(tmp_path / "flat.png")
    count = 1_000
    loader = make_loader(
        [str(tmp_path / "flat.png")], batch_size=250, views={"a": View(erase=0.5, erase_area=area)}
    )
    made = run(loader, 250, order=np.zeros(count, dtype=np.int64))["a"]
    flat = torch.tensor([10, 200, 30]) / 127.5 - 1
    shares = ((made - flat[:, None, None]).abs() > 1e-4).any(dim=1).float().mean(dim=(1, 2))
    erased = shares[shares > 0]
    assert abs(len(erased) - count / 2) < 4 * np.sqrt(count / 4)
    slack = (HEIGHT + WIDTH) / 2 / (HEIGHT * WIDTH)  # sides are rounded to whole pixels
    assert erased.min() >= area[0] - slack
    assert erased.max() <= area[1] + slack
    assert float(erased.mean()) == pytest.approx(sum(area) / 2, abs=0.02)


def test_erasing_one_view_leaves_its_twin_alone(make_loader, photos):
    views = {"test": View(), "erased": View(erase=1.0), "twin": View()}
    made = run(make_loader(photos, views=views), 32)
    assert torch.equal(made["test"], made["twin"])
    assert not torch.equal(made["test"], made["erased"])
    assert torch.equal(made["test"], run(make_loader(photos, views={"t": View()}), 32)["t"])


def test_the_same_key_gives_the_same_pixels_in_another_loader(make_loader, photos):
    made = run(make_loader(photos), 32)
    assert same(made, run(make_loader(photos, threads=2), 32))
    main = run(make_loader(photos, views={"main": VIEWS["main"]}), 32)
    assert torch.equal(made["main"], main["main"])


def test_one_rank_of_64_sees_what_two_ranks_of_32_see(make_loader, photos):
    whole = run(make_loader(photos, batch_size=64), 64)
    for first in (0, 32):
        mine = np.arange(first, first + 32, dtype=np.int64)
        (part,) = make_loader(photos).epoch([mine], [mine], epoch=1)
        assert same(part, {name: value[first : first + 32] for name, value in whole.items()})


def test_epochs_positions_views_and_seeds_differ(make_loader, photos):
    loader = make_loader(photos)
    one, two = run(loader, 32, epoch=1), run(loader, 32, epoch=2)
    other_seed = run(make_loader(photos, seed=SEED + 1), 32)
    assert torch.equal(one["plain"], two["plain"])
    for name in ("main", "first"):
        assert not torch.equal(one[name], two[name])
        assert not torch.equal(one[name], other_seed[name])
    twice = run(loader, 32, order=[5, 5])
    assert not torch.equal(twice["main"][0], twice["main"][1])
    views = {"a": View(flip=0.5, pad=3), "b": View(flip=0.5, pad=3)}
    made = run(make_loader(photos, views=views), 32)
    assert not torch.equal(made["a"], made["b"])


def test_an_abandoned_epoch_leaves_the_next_one_as_it_would_be(make_loader, photos):
    expected = run(make_loader(photos), 16, epoch=2)
    loader = make_loader(photos)
    rows = batches(range(64), 16)
    for _ in loader.epoch(rows, rows, epoch=1):
        break
    held = loader.epoch(rows, rows, epoch=1)
    next(held)
    assert same(run(loader, 16, epoch=2), expected)
    with pytest.raises(AssertionError, match="ended by a later one"):
        next(held)


def test_the_last_batch_may_be_smaller_and_may_be_alone(make_loader, photos):
    whole = run(make_loader(photos, batch_size=64), 64)
    loader = make_loader(photos)
    assert same(run(loader, 24), whole)
    assert same(run(loader, 32, order=range(1)), {name: v[:1] for name, v in whole.items()})
    assert list(loader.epoch([], [], epoch=1)) == []


def test_a_batch_belongs_to_its_receiver(make_loader, photos):
    loader = make_loader(photos)
    rows = batches(range(64), 4)
    held, copies = [], []
    for batch in loader.epoch(rows, rows, epoch=1):
        held.append(batch)
        copies.append({name: value.clone() for name, value in batch.items()})
    run(loader, 32, epoch=2)
    loader.close()
    assert all(same(batch, copy) for batch, copy in zip(held, copies, strict=True))
    held[0]["rows"].zero_()
    assert rows[0].tolist() == [0, 1, 2, 3]


def test_a_row_of_a_view_keeps_its_memory_and_a_dropped_batch_gives_it_back(make_loader, photos):
    loader = make_loader(photos)
    rows = batches([0, 1] * 40, 2)
    epoch = loader.epoch(rows, rows, epoch=1)
    held = next(epoch)["first"][1].numpy()
    copy, places = held.copy(), set()
    for batch in epoch:
        places.add(batch["main"].data_ptr())
    assert (held == copy).all()
    assert len(places) <= 3  # one is used, one being made, one just dropped


def test_a_failure_of_any_kind_leaves_the_next_epoch_as_it_would_be(
    make_loader, photos, monkeypatch
):
    expected = run(make_loader(photos), 16)
    loader = make_loader(photos)
    with monkeypatch.context() as patch:
        patch.setattr(cpu_views, "resized", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            run(loader, 16)
    assert same(run(loader, 16), expected)


def test_a_file_that_breaks_while_training_is_named(make_loader, photos, broken):
    paths = [*photos, *broken]
    loader = make_loader(paths, batch_size=80)
    bad_batch = [2, 64, *range(3, 64), 65, *[64] * 10]  # larger than the checks' batches
    rows = [np.array(batch, dtype=np.int64) for batch in ([0, 1], bad_batch, [4, 5])]
    epoch = loader.epoch(rows, rows, epoch=1)
    assert next(epoch)["rows"].tolist() == [0, 1]
    with pytest.raises(UserError) as caught:
        next(epoch)
    first, second = list(broken)[:2]
    assert str(caught.value) == (
        f"cannot decode 2 images; replace or remove:\n  {first}: truncated\n  {second}: truncated"
    )
    # Neither the error nor a failing batch that nobody asked for harms what comes next.
    expected = run(make_loader(photos), 32)
    assert same(run(loader, 32), expected)
    next(loader.epoch(rows, rows, epoch=1))
    assert same(run(loader, 32), expected)


OF_DALI = "Error in MIXED operator `nvidia.dali.fn.decoders.image`,\nencountered:\n"
END = "\nCurrent pipeline object is no longer valid."


@pytest.mark.parametrize(
    ("found", "raised", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
         torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate 2.00 GiB"),
        (RuntimeError(f"{OF_DALI}CUDA runtime API error cudaErrorMemoryAllocation (2):{END}"),
         MemoryError, "while images are decoded: CUDA runtime API error cudaErrorMemoryAllocation"),
        (RuntimeError(f"{OF_DALI}std::bad_alloc{END}"), MemoryError,
         "while images are decoded: std::bad_alloc"),
        (RuntimeError(f"{OF_DALI}nvml error (999){END}"), RuntimeError, "nvml error (999)"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_images(
    make_loader, photos, monkeypatch, found, raised, message
):
    def fails(*_: object) -> None:
        raise found

    loader = make_loader(photos)
    rows = batches(range(4), 2)
    epoch = loader.epoch(rows, rows, epoch=1)
    next(epoch)
    loader._take = fails
    with pytest.raises(raised, match=re.escape(message)):
        next(epoch)
    # nor when it goes on while the files are looked at: DALI says no more than that it failed
    epoch = loader.epoch(rows, rows, epoch=1)
    loader._take = lambda: raise_(RuntimeError("Failed to decode sample #0"))
    broken = SimpleNamespace(feed_input=lambda *_: None, schedule_run=list, share_outputs=fails)
    monkeypatch.setattr(decoding, "decode_pipeline", lambda *_: broken)
    with pytest.raises(raised, match=re.escape(message)):
        next(epoch)


def raise_(error: Exception) -> None:
    raise error


def test_a_machine_without_open_files_is_no_fault_of_the_images(photos, monkeypatch):
    def no_file(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", no_file)
    with pytest.raises(OSError, match="Too many open files"):
        decoding.check_images(photos[:2], threads=1)


def test_files_that_go_missing_between_headers_and_pixels_are_left_out(
    photos, tmp_path, monkeypatch
):
    paths = [shutil.copy(photo, tmp_path) for photo in photos[:5]]

    def faults_of_headers(_: Sequence[str]) -> list:
        Path(paths[2]).unlink()
        return []

    monkeypatch.setattr(pipeline, "_header_faults", faults_of_headers)
    broken: list = []
    made = pipeline.read_images(
        paths, Transform(HEIGHT, WIDTH, "bicubic"), broken, batch_size=2, device="cpu"
    )
    assert [row for rows, _ in made for row in rows] == [0, 1, 3, 4]
    assert broken == [(paths[2], "missing")]


def test_views_made_on_the_cpu_for_a_gpu_are_the_cpus_and_sent_without_waiting(
    make_loader, photos
):
    expected = run(make_loader(photos), 24)
    with emulated() as gpu:
        found = run(make_loader(photos, device="cuda:0", on_cpu=True), 24)
        assert gpu.waits == []
        assert {str(found[name].device) for name in VIEWS} == {"cuda:0"}
        assert same({name: value.cpu() for name, value in found.items()}, expected)


def test_a_gpu_that_dali_cannot_use_is_reported_with_the_way_out(make_loader, photos, monkeypatch):
    def fails(*_: object) -> None:
        raise RuntimeError(f"Error in DALI:\ndriver too old{END}")

    monkeypatch.setattr(pipeline, "DaliViews", fails)
    with emulated(), pytest.raises(UserError) as caught:
        run(make_loader(photos, device="cuda:0"), 24)
    assert str(caught.value) == ("DALI cannot use cuda:0 (driver too old); set data.device=cpu, "
                                 "which makes images on the CPU")


def test_decoders_have_names_of_their_own():
    assert decoder_name("cpu") != decoder_name("cuda:0") == decoder_name("cuda:1")
    assert decoder_name("cpu").startswith("dali-")


def grey_levels_off(photos: list[str]) -> list[tuple[float, float]]:
    """Return the mean and the largest difference of each view by a GPU and by the CPU."""
    transform, found = Transform(HEIGHT, WIDTH, "bicubic", views=VIEWS), []
    options = {"batch_size": 32, "seed": SEED, "threads": 1}
    made = []
    for device in ("cpu", "cuda:0"):
        with closing(ImageLoader(photos, transform, device=device, **options)) as loader:
            made.append(run(loader, 24))
    for name in VIEWS:
        difference = (made[1][name].cpu() - made[0][name]).abs() * 127.5
        found.append((difference.mean().item(), difference.max().item()))
    return found


@pytest.mark.gpu
def test_a_gpu_gives_the_same_views_within_a_few_grey_levels(gpu_rank, photos):
    [found] = gpu_rank(grey_levels_off, photos=photos)
    assert all(mean < 1 and largest < 40 for mean, largest in found)


def test_the_loader_of_a_gpu_gives_the_same_views_within_a_few_grey_levels(photos):
    with emulated():
        found = grey_levels_off(photos)
    assert all(mean < 1 and largest < 40 for mean, largest in found)
