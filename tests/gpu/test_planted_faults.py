"""Faults that only a GPU shows are found by the emulator, at the line that has them."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from svll import losses, prompt_augmentation, stage1
from svll.evaluation.engine.products import Products
from svll.features import extract
from svll.reuse.frozen_features import FrozenFeatures
from tests.gpu.emulator import Emulator, GpuError
from tests.gpu.planted import planted
from tests.gpu.runs import carry_out


def rows(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, device="cuda")


def test_an_eye_without_a_device(gpu: Emulator) -> None:
    with planted(losses.ntxent_loss, ", device=a.device)", ")") as place:
        ...
    old = "dtype=torch.bool, device=a.device"
    with planted(losses.ntxent_loss, old, "dtype=torch.bool"):
        with pytest.raises(GpuError, match=r"masked_fill: .* at svll/losses\.py:\d+ ntxent_loss"):
            losses.ntxent_loss(rows(), rows())


def test_a_mask_that_is_left_on_the_cpu(gpu: Emulator) -> None:
    old = "(draw >= scale).to(prompts.device)"
    with planted(prompt_augmentation.mask, old, "(draw >= scale)") as place:
        with pytest.raises(GpuError, match=re.escape(f"at {place} mask")):
            prompt_augmentation.mask(rows(), 0.5, torch.Generator())


def test_a_product_that_is_not_brought_back(gpu: Emulator) -> None:
    with planted(Products._on_gpu, "out.cpu()", "out") as place:
        products = Products()
        sent = products.send(np.ones((2, 3), np.float32))
        with pytest.raises(TypeError, match=re.escape(f"at {place} Products._on_gpu")):
            products(sent, sent)


def test_a_number_that_is_fetched_within_a_loss(gpu: Emulator) -> None:
    with planted(losses.euclidean, "min=1e-12", "min=float(distance2.min())") as place:
        losses.euclidean(rows())
    assert [f"{wait.place.file}:{wait.place.line}" for wait in gpu.waits] == [place]


def test_labels_that_are_not_sent(world: str, tmp_path: Path) -> None:
    old = "torch.from_numpy(splits.labels).to(ranks.device())"
    with planted(stage1.build, old, "torch.from_numpy(splits.labels)"):
        with pytest.raises(GpuError, match=r"at svll/losses\.py:\d+ supcon_loss"):
            carry_out(tmp_path, f"data.root={world}", devices=1)


def test_an_encoder_that_is_not_moved(world: str, tmp_path: Path) -> None:
    old = "self._clip.image.to(ranks.device()).eval()"
    with planted(FrozenFeatures._make, old, "self._clip.image.eval()"):
        with pytest.raises(GpuError, match=r"conv2d: .* at svll/models/vit\.py:\d+ ImageEncoder"):
            carry_out(tmp_path, f"data.root={world}", devices=1)


def test_features_that_are_not_brought_back(world: str, tmp_path: Path) -> None:
    with planted(extract._encoded, "found.float().cpu()", "found.float()"):
        with pytest.raises(TypeError, match=r"at svll/features/extract\.py:\d+ encode_groups"):
            carry_out(tmp_path, f"data.root={world}", devices=1)
