"""BNNecks, heads and side information are built and initialised as the method says."""

import math

import pytest
import torch
from scipy.stats import kstest
from torch import Tensor, nn

from harness.config.build import build
from harness.config.sources import parse_overrides
from svll.config import Config
from svll.losses import ntxent_loss
from svll.models.clip import Clip, load_clip
from svll.models.reid import BNNeck, ProjectionHead, ReIDModel, SideInformation, image_head


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("svll-tiny", None, height=64, width=32, stride=8)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 32, generator=torch.Generator().manual_seed(0))


# --- BNNeck ---


def test_bnneck_classifies_batch_normalised_features_without_a_bias() -> None:
    neck = BNNeck(5, 7)
    with torch.no_grad():
        neck.norm.weight.uniform_(0.5, 2)
    x = 3 + 2 * torch.randn(6, 5)
    normed = (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + 1e-5).sqrt()
    expected = (normed * neck.norm.weight) @ neck.classifier.weight.T
    torch.testing.assert_close(neck(x), expected)
    assert neck.classifier.bias is None


def test_bnneck_trains_its_scale_and_classifier_but_not_its_shift() -> None:
    neck = BNNeck(5, 7)
    trained = {name for name, p in neck.named_parameters() if p.requires_grad}
    assert trained == {"norm.weight", "classifier.weight"}
    assert not neck.norm.bias.any()


def test_classifiers_start_normal_with_deviation_a_thousandth() -> None:
    weight = BNNeck(128, 500).classifier.weight
    assert weight.std().item() == pytest.approx(0.001, rel=0.02)
    assert abs(weight.mean().item()) < 4 * 0.001 / weight.numel() ** 0.5


def test_bnneck_takes_half_precision_features() -> None:
    x = torch.randn(6, 5).bfloat16()
    assert BNNeck(5, 7)(x).dtype == torch.float32


# --- projection head ---


def test_a_projection_head_is_three_layers_with_normalised_relu_between() -> None:
    head = ProjectionHead(5, hidden=11, out=3)
    linear = [layer for layer in head if isinstance(layer, nn.Linear)]
    norms = [layer for layer in head if isinstance(layer, nn.BatchNorm1d)]
    assert [tuple(layer.weight.shape) for layer in linear] == [(11, 5), (11, 11), (3, 11)]
    x = torch.randn(8, 5)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 2)
            norm.bias.normal_()
        expected = x
        for layer, norm in zip(linear, norms, strict=False):
            expected = expected @ layer.weight.T + layer.bias
            variance = expected.var(dim=0, unbiased=False)
            expected = (expected - expected.mean(dim=0)) / (variance + 1e-5).sqrt()
            expected = (expected * norm.weight + norm.bias).clamp(min=0)
        expected = expected @ linear[2].weight.T + linear[2].bias
        torch.testing.assert_close(head(x), expected, rtol=1e-4, atol=1e-5)


def head_of(*words: str, width: int = 192) -> nn.Sequential:
    """An image head of a run: 192 -> 512 -> 512 -> 64; `words` are settings."""
    sizes = ["model.head_hidden=512", "model.head_out=64", "model.predictor_hidden=512"]
    config = build(Config, parse_overrides([*sizes, *words]))
    torch.manual_seed(0)
    head = image_head(config, width)
    assert isinstance(head, nn.Sequential)
    return head


def p_value(values: Tensor, law: str, *parameters: float) -> float:
    return kstest(values.detach().flatten().double().numpy(), law, args=parameters).pvalue


def test_the_image_head_starts_kaiming_normal_with_uniform_normalisation_as_released() -> None:
    first, norm, _, second, other, _, third = head_of()
    for layer, inputs in ((first, 192), (second, 512), (third, 512)):
        assert p_value(layer.weight, "norm", 0.0, math.sqrt(2 / inputs)) > 1e-3
        bound = 1 / math.sqrt(inputs)  # torch's own, which the released code leaves
        assert p_value(layer.bias, "uniform", -bound, 2 * bound) > 1e-3
    drawn = [norm.weight, norm.bias, other.weight, other.bias]
    assert all(p_value(values, "uniform") > 1e-3 for values in drawn)
    assert len({values.sum().item() for values in drawn}) == 4
    another = head_of("seed=2")
    assert not torch.equal(another[0].weight, first.weight)


def test_nothing_else_of_a_run_depends_on_how_the_image_head_starts() -> None:
    states = []
    for init in ("released", "torch"):
        head = head_of(f"model.image_head_init={init}")
        states.append((torch.get_rng_state(), [head[place].bias for place in (0, 3, 6)]))
    (after, biases), (plain_after, plain_biases) = states
    assert torch.equal(after, plain_after)
    assert all(map(torch.equal, biases, plain_biases))
    bound = math.sqrt(1 / 192)
    assert p_value(head[0].weight, "uniform", -bound, 2 * bound) > 1e-3
    assert torch.equal(head[1].weight, torch.ones(512))
    assert not head[1].bias.any()


def test_the_predictor_of_simsiam_starts_with_torchs_defaults() -> None:
    heads = [
        head_of("stage2.vss_loss=simsiam", f"model.image_head_init={init}")
        for init in ("released", "torch")
    ]
    one, other = (head.state_dict() for head in heads)
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_the_released_start_sends_half_the_gradient_to_the_encoder() -> None:
    lengths = []
    for seed in range(4):
        views = torch.randn(3, 32, 192, generator=torch.Generator().manual_seed(seed))
        for init in ("released", "torch"):
            a, b = ((views[0] + view).requires_grad_() for view in views[1:])
            head = head_of(f"seed={seed}", f"model.image_head_init={init}")
            ntxent_loss(head(a), head(b)).backward()
            lengths.append(torch.cat([a.grad, b.grad]).norm().item())
    assert 1.7 < sum(lengths[1::2]) / sum(lengths[::2]) < 3


# --- side information ---


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        ("camera", 3, [2, 0, 1]),
        ("view", 8, [7, 1, 0]),
        ("camera_view", 24, [2 * 8 + 7, 1, 1 * 8]),
    ],
)
def test_side_information_is_a_vector_per_camera_view_or_both(
    kind: str, rows: int, expected: list[int]
) -> None:
    side = SideInformation(kind, cameras=3, views=8, width=4, weight=1.0)
    assert side.vectors.shape == (rows, 4)
    found = side(torch.tensor([2, 0, 1]), torch.tensor([7, 1, 0]))
    assert torch.equal(found, side.vectors[expected])


def test_side_information_counts_by_its_coefficient() -> None:
    side = SideInformation("camera", cameras=3, views=1, width=4, weight=2.5)
    found = side(torch.tensor([1]), torch.tensor([0]))
    torch.testing.assert_close(found, 2.5 * side.vectors[[1]])


def test_side_information_starts_truncated_normal_with_deviation_a_fiftieth() -> None:
    vectors = SideInformation("camera", cameras=100, views=1, width=128, weight=1.0).vectors
    assert vectors.std().item() == pytest.approx(0.02, rel=0.03)
    assert vectors.requires_grad


@pytest.mark.parametrize("kind", ["camera", "view", "camera_view"])
def test_what_training_never_saw_has_no_side_information(kind: str) -> None:
    side = SideInformation(kind, cameras=3, views=2, width=4, weight=2.0)
    unseen = torch.tensor([-1, -1])
    assert not side(unseen, unseen).any()
    known = side(torch.tensor([2, -1, 2]), torch.tensor([1, 1, -1]))
    row = {"camera": 2, "view": 1, "camera_view": 5}[kind]
    assert torch.equal(known[0], 2.0 * side.vectors[row])
    assert known[1].any() == (kind == "view")
    assert known[2].any() == (kind == "camera")


@pytest.mark.parametrize(("kind", "rows"), [("camera", 3), ("view", 2)])
def test_what_training_never_saw_can_get_the_mean_of_the_vectors(kind: str, rows: int) -> None:
    side = SideInformation(kind, cameras=3, views=2, width=4, weight=2.0, unseen="mean")
    expected = 2.0 * sum(side.vectors[row] for row in range(rows)) / rows
    found = side(torch.tensor([-1]), torch.tensor([-1]))
    torch.testing.assert_close(found[0], expected)


def test_an_unseen_camera_gets_the_mean_over_cameras_of_its_known_view() -> None:
    side = SideInformation("camera_view", cameras=3, views=2, width=4, weight=1.0, unseen="mean")
    v = side.vectors
    found = side(torch.tensor([-1, 2, -1, 1]), torch.tensor([1, -1, -1, 0]))
    expected = [(v[1] + v[3] + v[5]) / 3, (v[4] + v[5]) / 2, v.sum(dim=0) / 6, v[2]]
    torch.testing.assert_close(found, torch.stack(expected))


# --- the model ---


def model_with(
    clip: Clip, kind: str, weight: float = 1.0, unseen: str = "none"
) -> ReIDModel:
    torch.manual_seed(0)
    side = SideInformation(
        kind, cameras=3, views=2, width=clip.image.width, weight=weight, unseen=unseen
    )
    return ReIDModel(clip.image, side)


def test_the_test_feature_is_f12_beside_fp_as_it_comes(clip: Clip) -> None:
    model = model_with(clip, "camera")
    camera, view = torch.tensor([2, 0, 2]), torch.tensor([0, 1, 0])
    with torch.no_grad():
        side = torch.as_tensor(model.side.vectors[camera]) if model.side else None
        plain = clip.image(images(3), side)
        found = model.encode_image(images(3), camera, view)
    assert found.shape == (3, clip.image.width + clip.image.out)
    assert torch.equal(found, torch.cat([plain.f12, plain.fp], dim=1))


def test_without_a_camera_there_is_no_side_information(clip: Clip) -> None:
    with torch.no_grad():
        plain = clip.image(images(3))
        found = model_with(clip, "camera", weight=50.0).encode_image(images(3))
        without_module = ReIDModel(clip.image, None).encode_image(images(3))
    assert torch.equal(found, torch.cat([plain.f12, plain.fp], dim=1))
    assert torch.equal(found, without_module)


@pytest.mark.parametrize(("kind", "view"), [("camera", 0), ("camera_view", -1)])
def test_a_view_that_is_not_given_is_unseen_where_views_have_vectors(
    clip: Clip, kind: str, view: int
) -> None:
    model, camera = model_with(clip, kind, weight=50.0, unseen="mean"), torch.tensor([2, 0, 1])
    with torch.no_grad():
        expected = model.encode_image(images(3), camera, torch.full((3,), view))
        assert torch.equal(model.encode_image(images(3), camera), expected)
        assert (expected - model.encode_image(images(3))).abs().max() > 0.01


def test_test_features_are_full_precision(clip: Clip) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert ReIDModel(clip.image, None).encode_image(images(2)).dtype == torch.float32
