"""Stage 2's losses, schedule and optimizer against the formulas written plainly."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svll import stage2
from svll.config import Stage2
from svll.models.clip import load_clip
from svll.models.reid import BNNeck, ProjectionHead, ReIDModel, SideInformation
from svll.stage2 import ImageBatch, ImageObjective

IDENTITIES, HEIGHT, WIDTH = 5, 32, 16
LABELS = [4, 4, 4, 0, 0, 2]  # 3, 2 and 1 of an identity


def objective_of(
    config: Stage2, *, side: bool = True, noise: float = 0.5
) -> ImageObjective:
    """An objective around random encoders; side information is made large enough to be seen."""
    clip = load_clip("svll-tiny", None, height=HEIGHT, width=WIDTH, stride=8)
    torch.manual_seed(0)
    vectors = SideInformation("camera", cameras=3, views=1, width=clip.image.width, weight=1.0)
    nn.init.normal_(vectors.vectors, std=noise)
    model = ReIDModel(clip.image.requires_grad_(True), vectors if side else None)
    text = torch.randn(IDENTITIES, clip.image.out)
    head = ProjectionHead(clip.image.width, hidden=32, out=16)
    objective = ImageObjective(model, text, head, config, identities=IDENTITIES).train()
    for neck in (objective.neck12, objective.neckp):
        nn.init.normal_(neck.classifier.weight, std=0.1)
        nn.init.uniform_(neck.norm.weight, 0.5, 2)
    return objective


def batch_of(views: int = 3) -> ImageBatch:
    generator = torch.Generator().manual_seed(1)
    shape = (len(LABELS), 3, HEIGHT, WIDTH)
    return ImageBatch(
        views=[torch.randn(shape, generator=generator) for _ in range(views)],
        identities=torch.tensor(LABELS),
        camera=torch.tensor([0, 2, 1, 0, 1, 2]),
        view=torch.zeros(len(LABELS), dtype=torch.int64),
    )


# --- the loss of a batch ---


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


def plain_cross_entropy(logits: np.ndarray, smoothing: float) -> float:
    total = 0.0
    for row, label in zip(logits, LABELS, strict=True):
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        total -= float(target @ log_softmax(row))
    return total / len(logits)


def plain_triplet(x: np.ndarray, margin: float | None) -> float:
    total = 0.0
    for i, label in enumerate(LABELS):
        gaps = [
            float(np.linalg.norm(x[i] - x[p])) - float(np.linalg.norm(x[i] - x[n]))
            for p, other in enumerate(LABELS) if other == label
            for n, another in enumerate(LABELS) if another != label
        ]
        hardest = max(gaps)
        total += math.log1p(math.exp(hardest)) if margin is None else max(0.0, hardest + margin)
    return total / len(x)


def plain_ntxent(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    both = np.concatenate([a, b])
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    total, count = 0.0, len(a)
    for i, row in enumerate(both):
        others = [j for j in range(2 * count) if j != i]
        log_p = log_softmax(np.array([both[j] @ row / temperature for j in others]))
        total -= float(log_p[others.index((i + count) % (2 * count))])
    return total / (2 * count)


def plain_layers(layers: list[nn.Module], x: Tensor) -> np.ndarray:
    """Layers in float64, batch normalisation with the batch's own statistics."""
    x = x.double()
    for layer in layers:
        layer = copy.deepcopy(layer).double()
        if isinstance(layer, nn.BatchNorm1d):
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
            x = x * layer.weight + layer.bias
        else:
            x = layer(x)
    return x.detach().numpy()


def logits(neck: BNNeck, x: Tensor) -> np.ndarray:
    return plain_layers([neck.norm, neck.classifier], x)


@pytest.mark.parametrize("margin", [0.3, None])
@pytest.mark.parametrize("side", [True, False])
def test_losses_of_a_batch_are_those_of_the_formulas(side: bool, margin: float | None) -> None:
    config = Stage2(margin=margin, label_smoothing=0.2, vss_temperature=0.3)
    objective = objective_of(config, side=side)
    batch = batch_of()
    losses = objective(batch)
    encoder, head = objective.model.encoder, objective.head
    assert head is not None
    with torch.no_grad():  # three calls, side information in the first alone
        vectors = objective.model.side.vectors[batch.camera] if objective.model.side else None
        f11, f12, fp = encoder(batch.views[0], vectors)
        a, b = (encoder(view).f12 for view in batch.views[1:])
    expected = {
        "id": plain_cross_entropy(logits(objective.neck12, f12), 0.2)
        + plain_cross_entropy(logits(objective.neckp, fp), 0.2),
        "triplet": sum(plain_triplet(f.double().numpy(), margin) for f in (f11, f12, fp)),
        "i2t": plain_cross_entropy((fp.double() @ objective.text.double().T).numpy(), 0.2),
        "vss": plain_ntxent(plain_layers(list(head), a), plain_layers(list(head), b), 0.3),
    }
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name
    assert list(losses) == list(expected)


def test_losses_over_sampled_classes_are_those_over_these_alone() -> None:
    config = Stage2(label_smoothing=0.2, sampled_classes=4)
    objective = objective_of(config)
    batch = batch_of()
    chosen = stage2.sample_classes(batch.identities, IDENTITIES, 4, batch.seed)
    assert {0, 2, 4} < set(chosen.tolist())
    assert len(chosen) == 4
    losses = objective(batch)
    with torch.no_grad():
        main, _ = objective._encode(batch)
        f12, fp = main.f12, main.fp
    places = {identity: place for place, identity in enumerate(chosen.tolist())}

    def plain(logits: np.ndarray) -> float:
        kept, total = logits[:, chosen.numpy()], 0.0
        for row, label in zip(kept, LABELS, strict=True):
            target = np.full(len(row), 0.2 / len(row))
            target[places[label]] += 0.8
            total -= float(target @ log_softmax(row))
        return total / len(kept)

    identity = plain(logits(objective.neck12, f12)) + plain(logits(objective.neckp, fp))
    assert losses["id"].item() == pytest.approx(identity, rel=1e-4)
    i2t = plain(fp.double().numpy() @ objective.text.double().numpy().T)
    assert losses["i2t"].item() == pytest.approx(i2t, rel=1e-4)
    losses["id"].backward()
    grad = objective.neck12.classifier.weight.grad
    assert grad is not None
    assert (grad != 0).any(dim=1).nonzero()[:, 0].tolist() == chosen.tolist()


def test_all_classes_sampled_are_all_classes() -> None:
    whole, sampled = (
        objective_of(Stage2(sampled_classes=count))(batch_of()) for count in (0, IDENTITIES + 9)
    )
    assert {n: x.item() for n, x in sampled.items()} == {n: x.item() for n, x in whole.items()}


def test_classes_are_the_batchs_and_others_that_change_with_the_seed() -> None:
    labels = torch.tensor([7, 7, 990, 3])
    drawn = [stage2.sample_classes(labels, 1000, 50, seed).tolist() for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    for one in drawn:
        assert one == sorted(set(one))
        assert len(one) == 50
        assert {3, 7, 990} <= set(one)
    assert stage2.sample_classes(labels, 1000, 2, 1).tolist() == [3, 7, 990]
    counts = np.bincount(
        [c for seed in range(300) for c in stage2.sample_classes(labels, 1000, 50, seed).tolist()],
        minlength=1000,
    )
    others = np.delete(counts, [3, 7, 990])
    assert others.mean() == pytest.approx(300 * 47 / 997, rel=1e-9)
    assert others.max() < 4 * others.mean()


def test_the_views_share_one_call_of_the_encoder() -> None:
    objective = objective_of(Stage2())
    rows: list[int] = []
    objective.model.encoder.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    objective(batch_of())
    assert rows == [3 * len(LABELS)]


def test_one_call_for_three_views_gives_what_three_calls_give() -> None:
    objective, batch = objective_of(Stage2()), batch_of()
    encoder, side = objective.model.encoder, objective.model.side
    assert side is not None
    with torch.no_grad():
        main, others = objective._encode(batch)
        alone = [
            encoder(batch.views[0], side(batch.camera, batch.view)),
            *(encoder(view) for view in batch.views[1:]),
        ]
    for ours, plain in zip(main, alone[0], strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=1e-5)
    for other, found in zip(others, alone[1:], strict=True):
        torch.testing.assert_close(other, found.f12, rtol=0, atol=1e-5)


def test_side_information_reaches_the_main_view_only() -> None:
    objective, batch = objective_of(Stage2()), batch_of()
    side = objective.model.side
    assert side is not None
    with torch.no_grad():
        main, others = objective._encode(batch)
        side.vectors.neg_()
        changed_main, changed_others = objective._encode(batch)
    assert (main.f12 - changed_main.f12).abs().max() > 0.01
    for before, after in zip(others, changed_others, strict=True):
        assert torch.equal(before, after)
    objective(batch)["vss"].backward()
    assert side.vectors.grad is None or not side.vectors.grad.any()


def test_weight_zero_needs_one_view_and_has_no_head() -> None:
    objective = objective_of(Stage2(vss_weight=0.0))
    rows: list[int] = []
    objective.model.encoder.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    assert set(objective(batch_of(views=1))) == {"id", "triplet", "i2t"}
    assert rows == [len(LABELS)]
    assert not any(isinstance(module, ProjectionHead) for module in objective.modules())


def test_the_supervised_losses_do_not_depend_on_self_supervision() -> None:
    plain = objective_of(Stage2(vss_weight=0.0))(batch_of(views=1))
    both = objective_of(Stage2())(batch_of())
    for name in plain:
        torch.testing.assert_close(both[name], plain[name], rtol=1e-5, atol=1e-5)


def test_losses_are_finite_and_near_in_bf16() -> None:
    objective, batch = objective_of(Stage2()), batch_of()
    full = objective(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = objective(batch)
    for name in full:
        assert half[name].item() == pytest.approx(full[name].item(), rel=0.1), name
        assert half[name].dtype == torch.float32


# --- what is trained ---


def names_of(objective: ImageObjective, group: dict) -> set[str]:
    wanted = {id(p) for p in group["params"]}
    return {name for name, p in objective.named_parameters() if id(p) in wanted}


def test_biases_learn_twice_as_fast_as_weights() -> None:
    objective = objective_of(Stage2(lr=1e-3))
    weights, biases = stage2.optimizer(objective, Stage2(lr=1e-3)).param_groups
    assert (weights["lr"], biases["lr"]) == (1e-3, 2e-3)
    names = names_of(objective, biases)
    assert names == {
        name for name, p in objective.named_parameters() if "bias" in name and p.requires_grad
    }
    layer = "model.encoder.visual.transformer.resblocks.0"
    assert {f"{layer}.attn.in_proj_bias", f"{layer}.ln_1.bias", "head.0.bias"} <= names


def test_everything_but_the_necks_shift_is_trained_once() -> None:
    config = Stage2()
    objective = objective_of(config)
    groups = stage2.optimizer(objective, config).param_groups
    listed = [id(p) for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed))
    left = {name for name, p in objective.named_parameters() if id(p) not in set(listed)}
    assert left == {"neck12.norm.bias", "neckp.norm.bias"}


def test_every_trained_parameter_gets_a_gradient() -> None:
    config = Stage2()
    objective = objective_of(config)
    losses = objective(batch_of())
    weights = stage2.loss_weights(config)
    torch.stack([weights[name] * loss for name, loss in losses.items()]).sum().backward()
    for group in stage2.optimizer(objective, config).param_groups:
        without = {
            name for name in names_of(objective, group)
            if (grad := objective.get_parameter(name).grad) is None or not grad.any()
        }
        assert without == set()


def test_the_optimizer_is_plain_adam_with_l2_decay() -> None:
    config = Stage2(lr=1e-3, weight_decay=0.05, bias_lr_factor=3.0)
    objective = objective_of(config)
    optimizer = stage2.optimizer(objective, config)
    named = {
        "model.encoder.visual.proj": 1e-3, "head.0.bias": 3e-3,
        "neck12.classifier.weight": 1e-3, "model.side.vectors": 1e-3,
    }
    parameters = {name: objective.get_parameter(name) for name in named}
    values = {name: p.detach().double().clone() for name, p in parameters.items()}
    moments = {name: (torch.zeros_like(v), torch.zeros_like(v)) for name, v in values.items()}
    generator = torch.Generator().manual_seed(2)
    for step in (1, 2, 3):
        for name, p in parameters.items():
            # zero gradients too: decay alone moves a weight at full speed
            p.grad = torch.randn(p.shape, generator=generator) * (step < 3)
            gradient = p.grad.double() + 0.05 * values[name]
            first, second = moments[name]
            first.mul_(0.9).add_(0.1 * gradient)
            second.mul_(0.999).add_(0.001 * gradient**2)
            change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
            values[name] -= named[name] * change
        optimizer.step()
        for name, p in parameters.items():
            torch.testing.assert_close(p.detach().double(), values[name], rtol=0, atol=1e-6)
    assert type(optimizer) is torch.optim.Adam


def test_text_features_are_neither_trained_nor_saved() -> None:
    objective = objective_of(Stage2())
    assert "text" not in objective.state_dict()
    assert not objective.text.requires_grad
    assert "text" in dict(objective.named_buffers())  # so that it moves to the device


def test_the_sum_is_weighted_by_the_config() -> None:
    assert stage2.loss_weights(Stage2()) == {"id": 0.25, "triplet": 1.0, "i2t": 1.0, "vss": 0.8}
    config = Stage2(id_weight=2.0, triplet_weight=3.0, i2t_weight=4.0, vss_weight=5.0)
    assert stage2.loss_weights(config) == {"id": 2.0, "triplet": 3.0, "i2t": 4.0, "vss": 5.0}


# --- the schedule ---

PERSONS = {1: 9.5e-7, 2: 1.4e-6, 5: 2.75e-6, 9: 4.55e-6} | {
    **dict.fromkeys(range(10, 30), 5e-6), **dict.fromkeys(range(30, 50), 5e-7),
    **dict.fromkeys(range(50, 61), 5e-8),
}  # run from the released scheduler's class


def test_learning_rates_are_those_of_the_released_scheduler() -> None:
    config = Stage2()
    found = {epoch: config.lr * stage2.lr_factor(config, epoch) for epoch in PERSONS}
    assert found == pytest.approx(PERSONS, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"warmup_epochs": 0, "milestones": []}, [1, 1, 1, 1]),
        ({"warmup_epochs": 2, "warmup_factor": 0.0, "milestones": [3]}, [0.5, 1, 0.1, 0.1]),
        ({"warmup_epochs": 4, "warmup_factor": 0.2, "milestones": [2]}, [0.4, 0.06, 0.08, 0.1]),
        ({"warmup_epochs": 0, "milestones": [2, 4], "gamma": 0.5}, [1, 0.5, 0.5, 0.25]),
        ({"warmup_epochs": 0, "milestones": [2, 2]}, [1, 0.01, 0.01, 0.01]),
    ],
)
def test_warm_up_and_milestones_act_from_their_own_epoch(
    options: dict, expected: list[float]
) -> None:
    config = Stage2(**options)
    assert [stage2.lr_factor(config, e) for e in (1, 2, 3, 4)] == pytest.approx(expected)
