"""A ResNet's features are CLIP-ReID's, and do not depend on how many ranks share a batch."""

from typing import Any

import open_clip
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm

from harness.base.errors import UserError
from harness.training import ranks
from svll.models.clip import load_clip
from svll.models.resnet import ResNetEncoder, SyncedBatchNorm2d, synchronised
from svll.models.vit import resize_positions
from tests.gpu.emulator import emulated


def tower(size: int = 224) -> Any:
    """A small open_clip ResNet with statistics and scales that are not those of the start."""
    torch.manual_seed(1)
    model = open_clip.modified_resnet.ModifiedResNet(
        [1, 2, 1, 2], output_dim=24, heads=4, image_size=size, width=8
    )
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- the architecture, written again ---


def normed(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Batch norm by the running statistics."""
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    scale = state[f"{name}.weight"] / (variance + 1e-5).sqrt()
    return (x - mean[:, None, None]) * scale[:, None, None] + state[f"{name}.bias"][:, None, None]


def block(state: dict[str, Tensor], name: str, x: Tensor, *, shrink: bool) -> Tensor:
    own = F.relu(normed(state, f"{name}.bn1", F.conv2d(x, state[f"{name}.conv1.weight"])))
    own = F.conv2d(own, state[f"{name}.conv2.weight"], padding=1)
    own = F.relu(normed(state, f"{name}.bn2", own))
    if shrink:
        own, x = F.avg_pool2d(own, 2), F.avg_pool2d(x, 2)
    own = normed(state, f"{name}.bn3", F.conv2d(own, state[f"{name}.conv3.weight"]))
    if f"{name}.downsample.0.weight" in state:
        x = F.conv2d(x, state[f"{name}.downsample.0.weight"])
        x = normed(state, f"{name}.downsample.1", x)
    return F.relu(own + x)


def attended(state: dict[str, Tensor], x: Tensor, heads: int) -> Tensor:
    """The mean over positions asks all positions and itself; [B, C, h, w] to [B, D]."""
    tokens = x.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    tokens = tokens + state["attnpool.positional_embedding"]
    query, key, value = (
        F.linear(part, state[f"attnpool.{n}_proj.weight"], state[f"attnpool.{n}_proj.bias"])
        .unflatten(2, (heads, -1)).transpose(1, 2)
        for n, part in (("q", tokens[:, :1]), ("k", tokens), ("v", tokens))
    )
    weights = (query @ key.transpose(2, 3) / key.shape[3] ** 0.5).softmax(dim=3)
    found = (weights @ value).transpose(1, 2).flatten(1)
    return F.linear(found, state["attnpool.c_proj.weight"], state["attnpool.c_proj.bias"])


def plain_features(state: dict[str, Tensor], x: Tensor, heads: int) -> list[Tensor]:
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.conv2d(x, state[f"conv{number}.weight"], stride=stride, padding=1)
        x = F.relu(normed(state, f"bn{number}", x))
    x = F.avg_pool2d(x, 2)
    stages = []
    for stage in (1, 2, 3, 4):
        count = len({name.split(".")[1] for name in state if name.startswith(f"layer{stage}.")})
        for place in range(count):
            # the last stage does not shrink, other than in CLIP
            shrink = place == 0 and stage in (2, 3)
            x = block(state, f"layer{stage}.{place}", x, shrink=shrink)
        stages.append(x)
    f11, f12 = (stage.flatten(2).mean(dim=2) for stage in stages[2:])
    return [f11, f12, attended(state, stages[3], heads)]


@pytest.mark.parametrize("size", [(64, 32), (48, 80)])
def test_features_are_means_of_the_last_two_stages_and_the_attention_pool(
    size: tuple[int, int]
) -> None:
    visual = tower()
    state = {name: value.clone() for name, value in visual.state_dict().items()}
    grid = (size[0] // 16, size[1] // 16)
    state["attnpool.positional_embedding"] = resize_positions(
        state["attnpool.positional_embedding"], (7, 7), grid
    )
    encoder = ResNetEncoder(visual, height=size[0], width=size[1], stride=None).eval()
    assert encoder.grid == grid
    assert (encoder.width, encoder.out) == (256, 24)
    assert not encoder.per_sample
    with torch.no_grad():
        found = encoder(images(2, *size))
        expected = plain_features(state, images(2, *size), heads=4)
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-5, atol=1e-5)


def test_side_information_for_a_resnet_is_a_fault_of_ours() -> None:
    encoder = ResNetEncoder(tower(), height=32, width=32, stride=None)
    with pytest.raises(AssertionError):
        encoder(images(1, 32, 32), torch.zeros(1, 256))


def test_a_stride_is_refused_with_what_to_set() -> None:
    with pytest.raises(UserError, match=r"model\.stride=12: .*use model\.stride=null"):
        ResNetEncoder(tower(), height=32, width=32, stride=12)


def test_sides_that_are_no_multiples_of_16_are_named() -> None:
    with pytest.raises(UserError, match=r"data 40x32: .*multiples of 16"):
        ResNetEncoder(tower(), height=40, width=32, stride=None)


def test_rn50_by_name_has_clip_reids_sizes() -> None:
    clip = load_clip("RN50-quickgelu", None, height=64, width=32, stride=None)
    image = clip.image.eval()
    assert (image.grid, image.width, image.out) == ((4, 2), 2048, 1024)
    with torch.no_grad():
        shapes = [tuple(feature.shape) for feature in image(images(1, 64, 32))]
    assert shapes == [(1, 1024), (1, 2048), (1, 1024)]
    norms = [m for m in image.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 55
    assert all(isinstance(norm, SyncedBatchNorm2d) for norm in norms)


def test_resnets_of_other_resolutions_keep_their_positions_square() -> None:
    encoder = ResNetEncoder(tower(size=288), height=64, width=32, stride=16)
    assert encoder.visual.attnpool.positional_embedding.shape == (9, 256)


# --- batch norm over ranks ---


def test_one_rank_normalises_as_torch_does() -> None:
    torch.manual_seed(0)
    plain, x = nn.BatchNorm2d(3), 5 + torch.randn(4, 3, 2, 5)
    synced = synchronised(nn.Sequential(nn.BatchNorm2d(3)))[0]  # type: ignore[index]
    for _ in range(2):
        torch.testing.assert_close(synced(x), plain(x), rtol=0, atol=0)
    assert synced.state_dict().keys() == plain.state_dict().keys()
    assert torch.equal(synced.running_var, plain.running_var)
    plain.eval()
    synced.eval()
    assert torch.equal(synced(x), plain(x))


def test_swapping_keeps_weights_statistics_and_what_is_trained() -> None:
    visual = tower()
    visual.bn1.bias.requires_grad_(False)
    before = {name: value.clone() for name, value in visual.state_dict().items()}
    parameter = visual.layer1[0].bn2.weight
    synchronised(visual)
    assert visual.layer1[0].bn2.weight is parameter
    assert not visual.bn1.bias.requires_grad
    assert visual.bn1.weight.requires_grad
    after = visual.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def problem() -> tuple[nn.Module, Tensor, Tensor]:
    """A batch norm of known weights, a batch far from zero, and a gradient of its output."""
    torch.manual_seed(3)
    norm = nn.Sequential(nn.BatchNorm2d(5))
    nn.init.uniform_(norm[0].weight, 0.5, 2)
    nn.init.normal_(norm[0].bias)
    return norm, 30 + torch.randn(6, 5, 3, 2), torch.randn(6, 5, 3, 2)


def normalise_own_share() -> dict[str, Any]:
    norm, x, grad = problem()
    norm, share = synchronised(norm), ranks.shard(len(x))
    own = x[share].requires_grad_()
    for _ in range(2):
        own.grad = None
        norm.zero_grad()
        found = norm(own)
        found.backward(grad[share])
    assert own.grad is not None
    state = norm.state_dict()
    return {
        "output": found.tolist(), "gradient": own.grad.tolist(),
        "weight": [p.grad.tolist() for p in norm.parameters() if p.grad is not None],
        "statistics": [state["0.running_mean"].tolist(), state["0.running_var"].tolist()],
        "batches": int(state["0.num_batches_tracked"]),
    }


def test_two_ranks_normalise_halves_of_a_batch_as_one_does_the_whole(two_ranks: Any) -> None:
    norm, x, grad = problem()
    x.requires_grad_()
    for _ in range(2):
        x.grad = None
        norm.zero_grad()
        output = norm(x)
        output.backward(grad)
    first, second = two_ranks(normalise_own_share)
    near = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(torch.tensor(first["output"] + second["output"]), output, **near)
    torch.testing.assert_close(torch.tensor(first["gradient"] + second["gradient"]), x.grad, **near)
    for place, parameter in enumerate(norm.parameters()):
        total = torch.tensor(first["weight"][place]) + torch.tensor(second["weight"][place])
        torch.testing.assert_close(total, parameter.grad, **near)
    expected = norm.state_dict()
    for rank in (first, second):
        assert rank["batches"] == 2
        for found, name in zip(rank["statistics"], ("running_mean", "running_var"), strict=True):
            torch.testing.assert_close(torch.tensor(found), expected[f"0.{name}"], **near)


def encode_share_in_bf16() -> str:
    norm, x, _ = problem()
    return str(synchronised(norm)(x[ranks.shard(len(x))].bfloat16()).dtype)


def test_half_precision_comes_out_as_it_went_in(two_ranks: Any) -> None:
    assert two_ranks(encode_share_in_bf16) == ["torch.bfloat16"] * 2


def test_on_a_gpu_the_host_does_not_wait_for_the_statistics(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "gather_rows", lambda rows: torch.cat([rows, rows]))
    norm, x, grad = problem()
    with emulated() as gpu:
        norm, x, grad = (one.to("cuda") for one in (synchronised(norm), x, grad))
        gpu.waits.clear()
        norm(x).backward(grad)
        assert gpu.waits == []


def test_torchs_own_norm_over_ranks_waits_three_times_in_each_call() -> None:
    """Once it does not, it can stand in for ours on GPUs."""
    norm, x, _ = problem()
    with emulated() as gpu:
        dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
        given: Any = norm.to("cuda")[0]
        x, group = x.to("cuda"), dist.group.WORLD
        gpu.waits.clear()
        SyncBatchNorm.apply(x, given.weight, given.bias, None, None, 1e-5, 0.1, group, 1)
        assert [wait.kind for wait in gpu.waits] == ["boolean index"] * 3
