"""Stage 1's losses, schedule and optimizer against the formulas written plainly."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from svll import stage1
from svll.config import Stage1
from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ProjectionHead
from svll.stage1 import PromptBatch, PromptObjective

IDENTITIES, WIDTH = 7, 128
LABELS = [4, 1, 4, 6, 1, 4]  # 3, 2 and 1 of an identity


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("svll-tiny", None, height=64, width=32, stride=8)


def objective_of(clip: Clip, config: Stage1) -> PromptObjective:
    torch.manual_seed(0)
    prompts = PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=IDENTITIES, tokens=4, noun="person"
    )
    nn.init.normal_(prompts.tokens, std=0.3)  # as different as trained ones
    head = ProjectionHead(clip.text.out, hidden=32, out=16)
    return PromptObjective(prompts, clip.text, head, config).train()


def batch_of(labels: list[int] = LABELS, seed: int = 11) -> PromptBatch:
    features = torch.randn(len(labels), WIDTH, generator=torch.Generator().manual_seed(1))
    return PromptBatch(features, torch.tensor(labels), seed)


class Calls:
    """Counts a module's calls and the rows that it was given."""

    def __init__(self, module: nn.Module) -> None:
        self.rows: list[int] = []
        self.hook = module.register_forward_hook(
            lambda _, inputs, __: self.rows.append(len(inputs[0]))
        )


# --- the loss of a batch ---


def encode_77(clip: Clip, objective: PromptObjective, prompts: Tensor) -> Tensor:
    """Encode prompts [n, L, W] at all 77 positions, padding after the end; returns [n, D]."""
    end, count = prompts.shape[1] - 1, len(prompts)
    padding = torch.as_tensor(objective.prompts.padding).expand(count, 76 - end, -1)
    mask = torch.full((77, 77), float("-inf")).triu(1)
    x = torch.cat([prompts, padding], dim=1) + clip.text.positional_embedding
    x = clip.text.transformer(x, attn_mask=mask)
    return clip.text.ln_final(x)[:, end] @ clip.text.text_projection


def log_softmax(row: np.ndarray) -> np.ndarray:
    return row - row.max() - math.log(np.exp(row - row.max()).sum())


def plain_supcon(a: np.ndarray, b: np.ndarray, labels: list[int]) -> float:
    total = 0.0
    for row, label in zip(a, labels, strict=True):
        log_p = log_softmax(b @ row)
        total -= float(np.mean([log_p[j] for j, other in enumerate(labels) if other == label]))
    return total / len(labels)


def plain_ntxent(a: np.ndarray, b: np.ndarray, temperature: float) -> float:
    both = np.concatenate([a, b])
    both = both / np.linalg.norm(both, axis=1, keepdims=True)
    total, count = 0.0, len(a)
    for i, row in enumerate(both):
        others = [j for j in range(2 * count) if j != i]
        log_p = log_softmax(np.array([both[j] @ row / temperature for j in others]))
        total -= float(log_p[others.index((i + count) % (2 * count))])
    return total / (2 * count)


def plain_head(head: nn.Sequential, x: Tensor) -> np.ndarray:
    """The head in float64, with batch statistics."""
    x = x.double()
    for layer in copy.deepcopy(head).double():
        if isinstance(layer, nn.BatchNorm1d):
            normed = (x - x.mean(0)) / (x.var(0, unbiased=False) + layer.eps).sqrt()
            x = normed * layer.weight + layer.bias
        else:
            x = layer(x)
    return x.detach().numpy()


@pytest.mark.parametrize("kind", ["mask", "swap", "swap_prompt", "mix"])
def test_losses_of_a_batch_are_those_of_the_formulas(
    clip: Clip, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(clip, Stage1(augment=kind, lss_temperature=0.2))
    copies: list[Tensor] = []
    original = stage1.augment_prompts

    def spy(prompts: Tensor, **options: Any) -> Tensor:
        copies.append(original(prompts, **options))
        return copies[-1]

    monkeypatch.setattr(stage1, "augment_prompts", spy)
    batch = batch_of()
    losses = objective(batch)
    with torch.no_grad():
        own = objective.prompts(batch.identities)
        text = encode_77(clip, objective, own).double().numpy()
        heads = [plain_head(objective.head, encode_77(clip, objective, c)) for c in copies]
    images = batch.features.double().numpy()
    assert {name: loss.item() for name, loss in losses.items()} == {
        "i2t": pytest.approx(plain_supcon(images, text, LABELS), rel=1e-4),
        "t2i": pytest.approx(plain_supcon(text, images, LABELS), rel=1e-4),
        "lss": pytest.approx(plain_ntxent(heads[0], heads[1], 0.2), rel=1e-4),
    }
    distinct = objective.prompts(torch.tensor([1, 4, 6]))  # each identity of the batch once
    assert [len(c) for c in copies] == [3, 3]
    assert all(not torch.equal(c, distinct) for c in copies)
    if kind != "mix":  # of three prompts the partners may be the same twice
        assert not torch.equal(*copies)


@pytest.mark.parametrize("tokens", ["all", "learnable"])
@pytest.mark.parametrize("kind", ["mask", "swap", "swap_prompt", "mix"])
def test_gradients_are_those_of_prompts_encoded_whole(
    clip: Clip, kind: Any, tokens: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(clip, Stage1(augment=kind, augment_tokens=tokens))
    batch, learned = batch_of(), objective.prompts.tokens
    losses = objective(batch)
    [found] = torch.autograd.grad(torch.stack(list(losses.values())).sum(), learned)

    def whole(sets: list[Tensor]) -> Tensor:
        return encode_77(clip, objective, torch.cat(sets))

    monkeypatch.setattr(objective, "encode", whole)
    plain = objective(batch)
    [expected] = torch.autograd.grad(torch.stack(list(plain.values())).sum(), learned)
    assert {n: x.item() for n, x in losses.items()} == pytest.approx(
        {n: x.item() for n, x in plain.items()}, rel=1e-4
    )
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (expected != 0).flatten(1).any(dim=1).tolist() == [
        number in LABELS for number in range(IDENTITIES)
    ]


def test_the_copies_are_augmented_as_the_config_says(
    clip: Clip, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []
    original = stage1.augment_prompts

    def spy(prompts: Tensor, **options: Any) -> Tensor:
        asked.append(options)
        return original(prompts, **options)

    monkeypatch.setattr(stage1, "augment_prompts", spy)
    objective_of(clip, Stage1(augment="swap", augment_scale=0.3))(batch_of())
    objective_of(clip, Stage1(augment_tokens="learnable"))(batch_of())
    assert [(o["kind"], o["scale"], o["keep"]) for o in asked] == [
        *[("swap", 0.3, None)] * 2, *[("mask", 0.5, slice(5, 9))] * 2
    ]
    assert {o["context_length"] for o in asked} == {77}


def test_text_features_of_all_77_tokens_and_of_the_prefix_agree(clip: Clip) -> None:
    objective = objective_of(clip, Stage1())
    with torch.no_grad():
        prompts = objective.prompts(torch.arange(IDENTITIES))
        expected = encode_77(clip, objective, prompts)
        torch.testing.assert_close(objective.text(prompts), expected, rtol=0, atol=1e-5)


def test_weight_zero_encodes_no_copies_and_calls_no_head(clip: Clip) -> None:
    objective = objective_of(clip, Stage1(lss_weight=0.0))
    head, text = Calls(objective.head), Calls(objective.text)
    assert set(objective(batch_of())) == {"i2t", "t2i"}
    assert head.rows == []
    assert text.rows == [3]  # the distinct identities, in one call
    text.hook.remove()


def test_prompts_and_both_copies_share_one_call_of_the_encoder(clip: Clip) -> None:
    objective = objective_of(clip, Stage1())
    text = Calls(objective.text)
    objective(batch_of())
    assert text.rows == [9]
    text.hook.remove()


def test_the_supervised_losses_do_not_depend_on_self_supervision(clip: Clip) -> None:
    plain = objective_of(clip, Stage1(lss_weight=0.0))(batch_of())
    both = objective_of(clip, Stage1(lss_weight=0.8))(batch_of())
    for name in plain:
        torch.testing.assert_close(both[name], plain[name])


def test_a_batch_of_one_identity_has_no_self_supervised_loss(clip: Clip) -> None:
    objective = objective_of(clip, Stage1())
    losses = objective(batch_of([2, 2, 2]))
    assert losses["lss"].item() == 0
    torch.stack(list(losses.values())).sum().backward()  # still on the graph


def test_the_draws_of_a_step_are_those_of_its_seed(clip: Clip) -> None:
    objective = objective_of(clip, Stage1()).eval()
    first, again, other = (objective(batch_of(seed=s))["lss"].item() for s in (11, 11, 12))
    assert first == again != other


@pytest.mark.parametrize("kind", ["mask", "swap", "mix"])
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_encode_together_what_one_rank_encodes(
    clip: Clip, kind: Any, world: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    objective = objective_of(clip, Stage1(augment=kind))
    batch = batch_of([0, 3, 5, 6, 2, 3])  # 5 identities: no multiple of the ranks

    def encoded_on(rank: int, ranks: int) -> list[Tensor]:
        monkeypatch.setattr(stage1.ranks, "rank", lambda: rank)
        monkeypatch.setattr(stage1.ranks, "world_size", lambda: ranks)
        monkeypatch.setattr(stage1.ranks, "gather_rows", lambda rows: rows)
        with torch.no_grad():
            prompts = objective.text.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
            seen: list[Tensor] = []
            try:
                objective._encode(batch.identities.unique(), batch.seed)
            finally:
                prompts.remove()
        return list(seen[0].chunk(3))  # the prompts and two copies

    alone = encoded_on(0, 1)
    shares = [encoded_on(rank, world) for rank in range(world)]
    for part, whole in enumerate(alone):
        assert torch.equal(torch.cat([share[part] for share in shares])[:5], whole)
        assert len({len(share[part]) for share in shares}) == 1


# --- what is trained ---


def test_the_prompts_alone_are_trained_unless_the_head_is_asked_for(clip: Clip) -> None:
    objective = objective_of(clip, Stage1())
    groups = stage1.optimizer(objective, Stage1()).param_groups
    assert [p for group in groups for p in group["params"]] == [objective.prompts.tokens]
    config = Stage1(train_head=True)
    objective = objective_of(clip, config)
    trained = {id(p) for g in stage1.optimizer(objective, config).param_groups for p in g["params"]}
    expected = {id(objective.prompts.tokens), *(id(p) for p in objective.head.parameters())}
    assert trained == expected


def test_every_part_of_the_loss_reaches_the_prompts_and_nothing_frozen(clip: Clip) -> None:
    for name in ("i2t", "t2i", "lss"):
        objective = objective_of(clip, Stage1())
        objective(batch_of())[name].backward()
        gradients = {n for n, p in objective.named_parameters() if p.grad is not None}
        assert gradients == {"prompts.tokens"}
        grad = objective.prompts.tokens.grad
        assert grad is not None
        moved = grad.abs().sum(dim=(1, 2)) > 0
        assert moved.nonzero().flatten().tolist() == [1, 4, 6]


def test_the_optimizer_is_plain_adam_over_all_identities(clip: Clip) -> None:
    """Decay is added to the gradient; identities outside the batch move by moments and decay."""
    config = Stage1(lr=3e-3, weight_decay=0.05, lss_weight=0.0)
    objective = objective_of(clip, config)
    optimizer = stage1.optimizer(objective, config)
    tokens = objective.prompts.tokens
    value = tokens.detach().double().clone()
    first, second = torch.zeros_like(value), torch.zeros_like(value)
    for step, labels in enumerate([[0, 1, 1], [2, 3, 2], [0, 2, 3]], start=1):
        optimizer.zero_grad()
        torch.stack(list(objective(batch_of(labels)).values())).sum().backward()
        assert tokens.grad is not None
        gradient = tokens.grad.double() + 0.05 * value
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        change = (first / (1 - 0.9**step)) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        value -= 3e-3 * change
        optimizer.step()
        torch.testing.assert_close(tokens.detach().double(), value, rtol=0, atol=2e-5)
    assert type(optimizer) is torch.optim.Adam


def test_the_sum_is_weighted_by_the_config() -> None:
    assert stage1.loss_weights(Stage1(lss_weight=2.0)) == {"i2t": 1.0, "t2i": 1.0, "lss": 2.0}


# --- the schedule ---

PERSONS = {
    1: 7.8e-5, 2: 1.46e-4, 3: 2.14e-4, 4: 2.82e-4, 5: 3.485071e-4, 6: 3.478516e-4,
    10: 3.440541e-4, 30: 2.988901e-4, 60: 1.755e-4, 90: 5.210987e-5, 119: 1.059797e-6, 120: 1e-6,
}  # run from the released scheduler's class


@pytest.mark.parametrize(("epoch", "expected"), PERSONS.items())
def test_learning_rates_are_those_of_the_released_scheduler(epoch: int, expected: float) -> None:
    config = Stage1()
    assert config.lr * stage1.lr_factor(config, epoch) == pytest.approx(expected, rel=2e-7)


def rates(config: Stage1) -> Iterator[float]:
    return (config.lr * stage1.lr_factor(config, epoch) for epoch in range(1, config.epochs + 1))


def test_without_warm_up_the_cosine_starts_at_once() -> None:
    found = list(rates(Stage1(warmup_epochs=0, epochs=4, lr=1.0, lr_min=0.0)))
    assert found == pytest.approx([0.5 * (1 + math.cos(math.pi * e / 4)) for e in (1, 2, 3, 4)])


def test_warm_up_ends_where_the_cosine_is_by_then() -> None:
    config = Stage1(warmup_epochs=3, epochs=6, lr=1.0, lr_min=0.0, warmup_lr=0.1)
    assert list(rates(config)) == pytest.approx([0.4, 0.7, 0.5, 0.25, 0.0669873, 0.0])


def test_a_run_shorter_than_its_warm_up_only_warms_up() -> None:
    config = Stage1(warmup_epochs=5, epochs=3, lr=1.0, warmup_lr=0.0)
    assert list(rates(config)) == pytest.approx([0.2, 0.4, 0.6])
