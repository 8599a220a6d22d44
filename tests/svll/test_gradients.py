"""The gradient of each stage's whole loss against what the loss really does along it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from svll import stage1, stage2
from svll.config import Model, Stage1, Stage2
from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel, SideInformation, agreement_head

SMALL = Model(name="svll-tiny", head_hidden=32, head_out=16, predictor_hidden=16)
IDENTITIES = 6


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("svll-tiny", "shipped", height=32, width=16, stride=8)


def total(objective: nn.Module, batch: Any, weights: dict[str, float]) -> Tensor:
    losses = objective(batch)
    return torch.stack([weights[name] * loss for name, loss in losses.items()]).sum()


def slopes(
    objective: nn.Module, loss: Callable[[], Tensor], step: float
) -> dict[str, tuple[float, float]]:
    """For each trained tensor: the length of its gradient, and the loss's slope in its direction.

    The slope is a central difference, so the two agree up to the third derivative.
    """
    objective.zero_grad()
    loss().backward()
    found = {}
    for name, parameter in objective.named_parameters():
        if parameter.grad is None:
            continue
        length = parameter.grad.norm().item()
        if length < 1e-3:  # lost in the rounding of fp32
            continue
        move = parameter.grad * (step / length)
        with torch.no_grad():
            parameter += move
            above = loss().item()
            parameter -= 2 * move
            below = loss().item()
            parameter += move
        found[name] = (length, (above - below) / (2 * step))
    return found


def only_moving(
    found: dict[str, tuple[float, float]], loss: str
) -> dict[str, tuple[float, float]]:
    """Without what SimSiam's targets depend on: they move, and by its definition have no gradient.
    """
    behind = ("prompts", "model") if loss == "simsiam" else ()
    return {name: pair for name, pair in found.items() if not name.startswith(behind)}


@pytest.mark.parametrize("loss", ["ntxent", "simsiam"])
@pytest.mark.parametrize("augment", ["mask", "swap", "mix"])
def test_the_gradient_of_stage_1_is_the_slope_of_its_loss(
    clip: Clip, augment: Any, loss: Any
) -> None:
    torch.manual_seed(0)
    config = Stage1(augment=augment, lss_loss=loss, train_head=True)
    prompts = PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=IDENTITIES, tokens=4, noun="person"
    )
    head = agreement_head(SMALL, clip.text.out, loss)
    objective = stage1.PromptObjective(prompts, clip.text, head, config)
    labels = torch.tensor([0, 1, 1, 3, 4, 5, 0, 2])
    features = torch.randn(len(labels), clip.text.out)
    batch = stage1.PromptBatch(features, labels, seed=3)
    weights = stage1.loss_weights(config)
    found = slopes(objective, lambda: total(objective, batch, weights), step=1e-3)
    assert "prompts.tokens" in found
    assert any(name.startswith("head.") for name in found)
    for name, (length, slope) in only_moving(found, loss).items():
        assert slope == pytest.approx(length, rel=0.05, abs=2e-2), name


@pytest.mark.parametrize("loss", ["ntxent", "simsiam"])
def test_the_gradient_of_stage_2_is_the_slope_of_its_loss(clip: Clip, loss: Any) -> None:
    torch.manual_seed(0)
    # a soft margin: the hinge has a corner
    config = Stage2(vss_loss=loss, margin=None)
    side = SideInformation("camera", cameras=3, views=1, width=clip.image.width, weight=1.0)
    model = ReIDModel(clip.image.requires_grad_(True), side)
    head = agreement_head(SMALL, clip.image.width, loss)
    text = torch.randn(IDENTITIES, clip.image.out)
    objective = stage2.ImageObjective(model, text, head, config, identities=IDENTITIES)
    count = 8
    batch = stage2.ImageBatch(
        [torch.randn(count, 3, 32, 16) for _ in range(3)], torch.arange(count) // 2,
        torch.arange(count) % 3, torch.zeros(count, dtype=torch.int64),
    )
    weights = stage2.loss_weights(config)
    found = slopes(objective, lambda: total(objective, batch, weights), step=3e-3)
    parts = {name.partition(".")[0] for name in found}
    assert parts == {"model", "neck12", "neckp", "head"}
    assert {"model.side.vectors", "model.encoder.visual.conv1.weight"} <= found.keys()
    for name, (length, slope) in only_moving(found, loss).items():
        assert slope == pytest.approx(length, rel=0.05, abs=2e-3), name
