"""Random erasing: boxes as timm draws them, and noise that both kernels agree on."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from harness.base import rng
from harness.images import erasing
from tests.gpu.emulator import emulated

HEIGHT, WIDTH = 256, 128
TRAINING, SELF_SUPERVISED = (0.02, 1 / 3), (0.33, 1 / 3)


def draws(count: int, seed: int = 0) -> np.ndarray:
    return rng.uniform(seed, 0, np.arange(count, dtype=np.int64), 0, erasing.DRAWS)


def boxes_of(
    numbers: np.ndarray, area: tuple[float, float] = TRAINING, probability: float = 1.0
) -> np.ndarray:
    return erasing.draw_boxes(
        numbers, height=HEIGHT, width=WIDTH, probability=probability, area=area
    )


def noisy(count: int, height: int, width: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Images of zeros, a box in each that may touch the edges, and keys."""
    generator = np.random.default_rng(seed)
    top, left = (generator.integers(0, size, count) for size in (height, width))
    tall, wide = generator.integers(1, height - top + 1), generator.integers(1, width - left + 1)
    images = np.zeros((count, 3, height, width), dtype=np.float32)
    keys = rng.hash_words(seed, np.arange(count, dtype=np.int64))
    return images, np.stack([top, left, tall, wide], axis=1), keys


def erase_in_place(images: np.ndarray, boxes: np.ndarray, keys: np.ndarray) -> None:
    for image, box, key in zip(images, boxes, keys, strict=True):
        erasing.erase_box(image, box, key, erasing.normal_table())


@pytest.mark.parametrize("area", [TRAINING, SELF_SUPERVISED])
@pytest.mark.parametrize(("height", "width"), [(256, 128), (24, 48), (48, 24)])
def test_boxes_are_those_of_the_plain_loop(
    area: tuple[float, float], height: int, width: int
) -> None:
    numbers = draws(300)
    boxes = erasing.draw_boxes(numbers, height=height, width=width, probability=0.5, area=area)
    low, high = math.log(0.3), math.log(1 / 0.3)
    for sample, box in zip(numbers, boxes, strict=True):
        expected = [0, 0, 0, 0]
        for share, aspect, top, left in sample[1:].reshape(10, 4):
            target = (area[0] + share * (area[1] - area[0])) * height * width
            ratio = math.exp(low + aspect * (high - low))
            tall, wide = round(math.sqrt(target * ratio)), round(math.sqrt(target / ratio))
            if sample[0] < 0.5 and tall < height and wide < width:
                places = int(top * (height - tall + 1)), int(left * (width - wide + 1))
                expected = [*places, tall, wide]
                break
        assert box.tolist() == expected


@pytest.mark.parametrize("area", [TRAINING, SELF_SUPERVISED])
def test_erased_share_stays_within_its_bounds_and_fills_them(area: tuple[float, float]) -> None:
    top, left, tall, wide = boxes_of(draws(20_000), area).T
    assert (top + tall <= HEIGHT).all()
    assert (left + wide <= WIDTH).all()
    share = tall * wide / (HEIGHT * WIDTH)
    # Each side is rounded by half a pixel at most.
    slack = ((tall + wide) / 2 + 0.25) / (HEIGHT * WIDTH)
    assert (share >= area[0] - slack).all()
    assert (share <= area[1] + slack).all()
    assert share.min() == pytest.approx(area[0], abs=0.005)
    assert share.max() == pytest.approx(area[1], abs=0.005)


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_share_of_erased_images_is_the_probability(probability: float) -> None:
    count = 20_000
    erased = boxes_of(draws(count), probability=probability).any(axis=1).sum()
    deviation = math.sqrt(count * probability * (1 - probability))
    assert abs(erased - count * probability) <= 4 * deviation


def test_place_and_shape_are_spread_evenly() -> None:
    # Boxes of 2 % always fit, so that nothing is drawn again.
    top, left, tall, wide = boxes_of(draws(5_000), (0.02, 0.02)).T
    aspect = np.log(tall / wide)
    bound = math.log(1 / 0.3)
    generator = np.random.default_rng(0)  # undoes the rounding to whole pixels
    for value, low, width in [
        ((top + generator.random(5_000)) / (HEIGHT - tall + 1), 0, 1),
        ((left + generator.random(5_000)) / (WIDTH - wide + 1), 0, 1),
        (aspect, -bound, 2 * bound),
    ]:
        assert stats.kstest(value, stats.uniform(low, width).cdf).statistic < 0.03


def test_a_box_that_never_fits_is_given_up() -> None:
    # A third of 400 x 20 pixels is at least 28 wide, whatever the aspect.
    boxes = erasing.draw_boxes(
        draws(500), height=400, width=20, probability=1, area=SELF_SUPERVISED
    )
    assert not boxes.any()


@pytest.mark.parametrize("width", [32, 33, 34, 35, 3])
def test_kernel_and_torch_write_the_same_noise_to_the_bit(width: int) -> None:
    images, boxes, keys = noisy(40, 24, width)
    boxes[::5] = 0
    images += np.random.default_rng(1).normal(size=images.shape).astype(np.float32)
    expected = erasing.erase(torch.from_numpy(images.copy()), boxes, keys)
    before = images.copy()
    erase_in_place(images, boxes, keys)
    np.testing.assert_array_equal(images, expected.numpy())
    for image, old, (top, left, tall, wide) in zip(images, before, boxes, strict=True):
        changed = image != old
        assert changed[:, top : top + tall, left : left + wide].all()
        assert changed.sum() == 3 * tall * wide


def test_noise_is_the_quantile_at_sixteen_bits_of_splitmix64() -> None:
    images, boxes, keys = noisy(1, 5, 7)
    boxes[:] = 0, 0, 5, 7
    erase_in_place(images, boxes, keys)
    for (c, y, x), value in np.ndenumerate(images[0]):
        counter = (c * 5 + y) * 2 + x // 4 + 1  # two words of four numbers a row
        word = (int(keys[0]) + counter * 0x9E3779B97F4A7C15) % 2**64
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        level = ((word ^ (word >> 31)) >> (16 * (x % 4))) % 2**16
        assert value == pytest.approx(stats.norm.ppf((level + 0.5) / 2**16), abs=1e-6)


def test_noise_is_normal_and_unrelated_between_pixels_channels_and_images() -> None:
    images, boxes, keys = noisy(8, 128, 64)
    boxes[:] = 0, 0, 128, 64
    erase_in_place(images, boxes, keys)
    count = images.size
    assert stats.kstest(images.ravel(), stats.norm.cdf).statistic < 2 / math.sqrt(count)
    assert images.var() == pytest.approx(1, abs=4 * math.sqrt(2 / count))
    for axis in range(4):
        along = np.moveaxis(images, axis, 0)
        correlation = np.corrcoef(along[:-1].ravel(), along[1:].ravel())[0, 1]
        assert abs(correlation) < 4 / math.sqrt(along[1:].size)


def test_noise_does_not_depend_on_the_batch() -> None:
    images, boxes, keys = noisy(6, 24, 32)
    alone = images[4:5].copy()
    erase_in_place(images, boxes, keys)
    erase_in_place(alone, boxes[4:5], keys[4:5])
    np.testing.assert_array_equal(alone, images[4:5])


def erased_on_a_gpu() -> list[float]:
    """Return what a GPU makes of images whose boxes it erases."""
    images, boxes, keys = noisy(6, 24, 33)
    found: list[float] = erasing.erase(torch.from_numpy(images).cuda(), boxes, keys).tolist()
    return found


@pytest.mark.gpu
def test_a_gpu_writes_the_same_noise(gpu_rank: Any) -> None:
    images, boxes, keys = noisy(6, 24, 33)
    erase_in_place(images, boxes, keys)
    assert gpu_rank(erased_on_a_gpu) == [images.tolist()]


def test_an_emulated_gpu_writes_the_same_noise() -> None:
    images, boxes, keys = noisy(6, 24, 33)
    erase_in_place(images, boxes, keys)
    with emulated():
        assert erased_on_a_gpu() == images.tolist()
