"""Each loss against loops in float64 that follow the formula, and against finite differences."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from svll.losses import (
    agreement_loss,
    euclidean,
    ntxent_loss,
    simsiam_loss,
    smooth_cross_entropy,
    supcon_loss,
    triplet_loss,
)

Array = NDArray[np.float64]

LABELS = [
    [0, 0, 1, 1, 2, 2],
    [5, 3, 5, 5, 3, 9],  # 3, 2 and 1 of an identity
    [7, 7, 7, 7, 2, 7],
]


def features(rows: int, width: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=generator, dtype=torch.float64)


def log_softmax(row: Array) -> Array:
    return row - (math.log(np.exp(row - row.max()).sum()) + row.max())


def plain_supcon(a: Array, b: Array, labels_a: list[int], labels_b: list[int]) -> float:
    total = 0.0
    for row, label in zip(a, labels_a, strict=True):
        log_p = log_softmax(np.array([float(row @ other) for other in b]))
        positives = [j for j, other in enumerate(labels_b) if other == label]
        total += sum(log_p[j] for j in positives) / len(positives)
    return -total / len(a)


def plain_ntxent(a: Array, b: Array, temperature: float) -> float:
    """The mean of the loss from a to b and that from b to a."""
    def one_way(x: Array, y: Array) -> float:
        total = 0.0
        for i, row in enumerate(x):
            def closeness(other: Array, row: Array = row) -> float:
                cosine = row @ other / (np.linalg.norm(row) * np.linalg.norm(other))
                return math.exp(cosine / temperature)

            others = [closeness(x[j]) for j in range(len(x)) if j != i]
            total -= math.log(closeness(y[i]) / (sum(others) + sum(closeness(o) for o in y)))
        return total / len(x)

    return (one_way(a, b) + one_way(b, a)) / 2


def plain_triplet(x: Array, labels: list[int], margin: float | None) -> float:
    total = 0.0
    for i, label in enumerate(labels):
        distance = [float(np.linalg.norm(x[i] - other)) for other in x]
        farthest = max(d for d, other in zip(distance, labels, strict=True) if other == label)
        nearest = min(d for d, other in zip(distance, labels, strict=True) if other != label)
        gap = farthest - nearest
        total += math.log1p(math.exp(gap)) if margin is None else max(0.0, gap + margin)
    return total / len(labels)


def plain_smooth_cross_entropy(logits: Array, labels: list[int], smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, labels, strict=True):
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= float(target @ log_softmax(row))
    return total / len(labels)


@pytest.mark.parametrize("labels", LABELS)
def test_supcon_is_the_mean_over_positives_duplicates_included(labels: list[int]) -> None:
    images, texts = features(6, seed=1), features(6, seed=2)
    for row, label in enumerate(labels):  # as in stage 1: one text for all images of an identity
        texts[row] = texts[labels.index(label)]
    y = torch.tensor(labels)
    for a, b in [(images, texts), (texts, images)]:
        expected = plain_supcon(a.numpy(), b.numpy(), labels, labels)
        assert supcon_loss(a, b, y, y).item() == pytest.approx(expected, rel=1e-12)


def test_supcon_compares_sides_of_different_sizes() -> None:
    a, b = features(3, seed=3), features(5, seed=4)
    labels_a, labels_b = [4, 1, 4], [1, 4, 8, 4, 1]
    expected = plain_supcon(a.numpy(), b.numpy(), labels_a, labels_b)
    found = supcon_loss(a, b, torch.tensor(labels_a), torch.tensor(labels_b))
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_supcon_neither_normalises_nor_scales() -> None:
    a, b, y = features(4, seed=5), features(4, seed=6), torch.tensor([0, 1, 2, 3])
    doubled = plain_supcon(2 * a.numpy(), b.numpy(), [0, 1, 2, 3], [0, 1, 2, 3])
    assert supcon_loss(2 * a, b, y, y).item() == pytest.approx(doubled, rel=1e-12)
    assert abs(doubled - supcon_loss(a, b, y, y).item()) > 0.1


def test_supcon_names_the_labels_that_have_no_positive() -> None:
    with pytest.raises(ValueError, match=r"without a positive.*\[3, 8\]"):
        supcon_loss(
            features(4), features(2), torch.tensor([8, 1, 3, 8]), torch.tensor([1, 5])
        )


@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_ntxent_takes_its_negatives_from_both_views(temperature: float) -> None:
    a, b = features(5, seed=7), features(5, seed=8)
    expected = plain_ntxent(a.numpy(), b.numpy(), temperature)
    assert ntxent_loss(a, b, temperature).item() == pytest.approx(expected, rel=1e-12)


def test_ntxent_has_temperature_a_tenth_by_default_and_ignores_lengths() -> None:
    a, b = features(5, seed=7), features(5, seed=8)
    lengths = torch.tensor([[0.1], [1.0], [7.0], [100.0], [3.0]], dtype=torch.float64)
    expected = plain_ntxent(a.numpy(), b.numpy(), 0.1)
    assert ntxent_loss(lengths * a, b * 5).item() == pytest.approx(expected, rel=1e-12)


def test_ntxent_is_the_same_with_its_views_exchanged() -> None:
    a, b = features(5, seed=7), features(5, seed=8)
    assert ntxent_loss(a, b).item() == pytest.approx(ntxent_loss(b, a).item(), rel=1e-12)


def test_ntxent_of_different_shapes_names_both() -> None:
    with pytest.raises(ValueError, match=r"\[3, 5\] and \[2, 5\]"):
        ntxent_loss(features(3), features(2))


def test_simsiam_is_the_mean_of_both_negative_cosines() -> None:
    pa, pb, za, zb = (features(4, seed=seed) for seed in (20, 21, 22, 23))

    def cosine(x: Array, y: Array) -> float:
        return float(x @ y / np.sqrt((x @ x) * (y @ y)))

    pairs = [*zip(pa, zb, strict=True), *zip(pb, za, strict=True)]
    expected = -sum(cosine(p.numpy(), z.numpy()) for p, z in pairs) / len(pairs)
    assert simsiam_loss(pa, pb, za, zb).item() == pytest.approx(expected, rel=1e-12)
    assert simsiam_loss(pa, 3 * pb, 2 * za, zb).item() == pytest.approx(expected, rel=1e-12)


def test_no_gradient_reaches_simsiams_targets() -> None:
    pa, pb, za, zb = (features(4, seed=seed).requires_grad_() for seed in (20, 21, 22, 23))
    simsiam_loss(pa, pb, za, zb).backward()
    assert za.grad is None
    assert zb.grad is None
    assert pa.grad is not None
    assert pb.grad is not None
    assert torch.autograd.gradcheck(
        lambda a, b: simsiam_loss(a, b, za.detach(), zb.detach()), (pa, pb)
    )


def test_simsiam_of_different_shapes_names_them() -> None:
    with pytest.raises(ValueError, match=r"\[3, 5\] and \[2, 5\]"):
        simsiam_loss(features(3), features(3), features(3), features(2))


def test_views_agree_by_the_loss_that_is_named() -> None:
    a, b = features(5, seed=7), features(5, seed=8)
    turn = features(5, seed=9)

    def head(x: Tensor) -> Tensor:
        return x @ turn

    projected = agreement_loss(head, a, b, kind="ntxent", temperature=0.5)
    assert projected.item() == ntxent_loss(a @ turn, b @ turn, 0.5).item()
    predicted = agreement_loss(head, a, b, kind="simsiam", temperature=0.5)
    assert predicted.item() == simsiam_loss(a @ turn, b @ turn, a, b).item()


@pytest.mark.parametrize("margin", [0.3, 1.2, 0.0, None])
@pytest.mark.parametrize("labels", LABELS)
def test_triplet_takes_the_hardest_pair_of_each_sample(
    labels: list[int], margin: float | None
) -> None:
    x = features(6, seed=9)
    expected = plain_triplet(x.numpy(), labels, margin)
    found = triplet_loss(x, torch.tensor(labels), margin)
    # a sample without a positive has itself, whose distance is 1e-6 instead of 0
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_triplet_margin_is_three_tenths_by_default() -> None:
    x, labels = features(6, seed=9), torch.tensor(LABELS[0])
    assert triplet_loss(x, labels).item() == triplet_loss(x, labels, 0.3).item()


def test_triplet_of_the_same_image_twice_has_a_finite_gradient() -> None:
    # whole numbers, so that the distance is not only near 0
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0]]).repeat(2, 1).requires_grad_()
    triplet_loss(x, torch.tensor([0, 1, 0, 1]), 5.0).backward()  # so wide that it is not satisfied
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.any()


def test_triplet_without_a_negative_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a negative"):
        triplet_loss(features(3), torch.tensor([4, 4, 4]))


def test_distances_are_euclidean() -> None:
    x = features(7, seed=10)
    off_diagonal = ~torch.eye(7, dtype=torch.bool)
    expected = torch.tensor([[math.dist(p, q) for q in x.tolist()] for p in x.tolist()])
    torch.testing.assert_close(
        euclidean(x)[off_diagonal], expected.double()[off_diagonal], rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_spreads_the_smoothing_over_all_identities(smoothing: float) -> None:
    logits, labels = 3 * features(6, width=9, seed=11), [0, 8, 3, 3, 5, 0]
    expected = plain_smooth_cross_entropy(logits.numpy(), labels, smoothing)
    found = smooth_cross_entropy(logits, torch.tensor(labels), smoothing)
    assert found.item() == pytest.approx(expected, rel=1e-12)


def test_cross_entropy_smooths_by_a_tenth_by_default() -> None:
    logits, labels = features(6, width=9), torch.arange(6)
    expected = plain_smooth_cross_entropy(logits.numpy(), labels.tolist(), 0.1)
    assert smooth_cross_entropy(logits, labels).item() == pytest.approx(expected, rel=1e-12)


UNEQUAL = torch.tensor([5, 3, 5, 5, 3])
DIFFERENTIABLE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "supcon": lambda a, b: supcon_loss(a, b, UNEQUAL, UNEQUAL),
    "ntxent": lambda a, b: ntxent_loss(a, b, 0.5),
    "triplet": lambda a, b: triplet_loss(a + b, UNEQUAL, 5.0),  # so wide that none is satisfied
    "soft triplet": lambda a, b: triplet_loss(a + b, UNEQUAL, None),
    "cross-entropy": lambda a, b: smooth_cross_entropy(a * b, torch.tensor([0, 3, 1, 3, 2])),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradient_is_that_of_finite_differences(name: str) -> None:
    loss, step = DIFFERENTIABLE[name], 1e-6
    sides = [features(5, width=4, seed=seed).requires_grad_() for seed in (12, 13)]
    gradients = torch.autograd.grad(loss(*sides), sides)
    for side, gradient in zip(sides, gradients, strict=True):
        numeric = torch.zeros_like(gradient)
        with torch.no_grad():
            for place in np.ndindex(*side.shape):
                middle = side[place].item()
                ends = []
                for offset in (step, -step):
                    side[place] = middle + offset
                    ends.append(loss(*sides).item())
                side[place] = middle
                numeric[place] = (ends[0] - ends[1]) / (2 * step)
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradient, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_autocast_does_not_lower_the_precision(name: str) -> None:
    sides = [features(5, width=4, seed=seed).float() for seed in (12, 13)]
    loss = DIFFERENTIABLE[name]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = loss(*sides)
    assert found.dtype == torch.float32
    assert found.item() == loss(*sides).item()


def test_half_precision_features_are_compared_in_full_precision() -> None:
    a, b = (features(6, seed=seed).bfloat16() for seed in (14, 15))
    labels = torch.tensor(LABELS[1])
    wide = (a.double(), b.double())
    for half, full in [
        (supcon_loss(a, b, labels, labels), supcon_loss(*wide, labels, labels)),
        (ntxent_loss(a, b), ntxent_loss(*wide)),
        (triplet_loss(a, labels), triplet_loss(wide[0], labels)),
        (smooth_cross_entropy(a, labels % 5), smooth_cross_entropy(wide[0], labels % 5)),
    ]:
        assert half.dtype == torch.float32
        assert half.item() == pytest.approx(full.item(), rel=1e-4)


@pytest.mark.parametrize(("call", "message"), [
    (lambda x, y: triplet_loss(x, y[:2]), r"features must be \[B, D\] and labels \[B\], got "
     r"\[4, 5\] and \[2\]"),
    (lambda x, y: triplet_loss(x.to("meta"), y), "features are on meta, labels on cpu; move them"),
    (lambda x, y: supcon_loss(x, x[:, :2], y, y), r"a and b must be as wide, got \[4, 5\] and "
     r"\[4, 2\]"),
    (lambda x, y: supcon_loss(x, x, y, y[None]), r"b must be \[B, D\] and labels_b \[B\]"),
    (lambda x, y: smooth_cross_entropy(x[0], y), r"logits must be \[B, D\] and labels \[B\]"),
    (lambda x, y: ntxent_loss(x, x, 0.0), "the temperature is 0.0; it must be above 0"),
    (lambda x, y: ntxent_loss(x[0], x[0]), r"views must have one shape \[B, D\], got \[5\]"),
])
def test_tensors_that_do_not_fit_are_refused_with_their_shapes_or_devices(
    call: Callable[[Tensor, Tensor], Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        call(features(4), torch.tensor([0, 0, 1, 1]))


def test_arrays_of_numpy_are_refused_by_name() -> None:
    with pytest.raises(TypeError, match="features: give a tensor, not ndarray"):
        triplet_loss(features(4).numpy(), torch.tensor([0, 0, 1, 1]))
    with pytest.raises(TypeError, match="views: give tensors, not list"):
        ntxent_loss([[1.0]], [[1.0]])  # type: ignore[arg-type]
