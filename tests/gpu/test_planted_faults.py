"""Faults that only a GPU shows are found by the emulator, at the line that has them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from svll import losses, prompt_augmentation, stage1
from svll.evaluation.engine.products import Products
from svll.features import extract
from svll.models.vit import ImageEncoder
from svll.reuse.frozen_features import FrozenFeatures
from tests.gpu.emulator import Emulator
from tests.gpu.planted import place_of, planted, refused
from tests.gpu.runs import carry_out


def rows(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, device="cuda")


def test_an_eye_without_a_device(gpu: Emulator) -> None:
    with (
        planted(losses.ntxent_loss, "bool, device=a.device", "bool"),
        # it is made in one line and used in another
        refused(losses.ntxent_loss, "masked_fill(itself"),
    ):
        losses.ntxent_loss(rows(), rows())


def test_a_mask_that_is_left_on_the_cpu(gpu: Emulator) -> None:
    sent = "to_device(draw >= scale, prompts.device)"
    with (
        planted(prompt_augmentation.mask, sent, "(draw >= scale)"),
        refused(prompt_augmentation.mask, "(draw >= scale"),
    ):
        prompt_augmentation.mask(rows(), 0.5, torch.Generator())


def test_a_product_that_is_not_brought_back(gpu: Emulator) -> None:
    products = Products()
    sent = products.send(np.ones((2, 3), np.float32))
    with planted(Products._on_gpu, "out.cpu()", "out"), refused(Products._on_gpu, "np.asarray(out"):
        products(sent, sent)


def test_a_number_that_is_fetched_within_a_loss(gpu: Emulator) -> None:
    with planted(losses.euclidean, "min=1e-12", "min=float(distance2.min())"):
        losses.euclidean(rows())
    assert [str(wait) for wait in gpu.waits] == [
        f"float at {place_of(losses.euclidean, 'clamp')} euclidean"
    ]


def test_labels_that_are_not_sent(world: str, tmp_path: Path) -> None:
    sent = "to_device(batch.identities, own.device)"
    with (
        planted(stage1.PromptObjective.forward, sent, "batch.identities"),
        pytest.raises(ValueError, match="a are on cuda:0, labels_a on cpu; move them to one"),
    ):
        carry_out(tmp_path, f"data.root={world}", devices=1)


def test_an_encoder_that_is_not_moved(world: str, tmp_path: Path) -> None:
    sent = "self._clip.image.to(ranks.device()).eval()"
    with (
        planted(FrozenFeatures._make, sent, "self._clip.image.eval()"),
        refused(ImageEncoder.forward, "visual.conv1(images)"),
    ):
        carry_out(tmp_path, f"data.root={world}", devices=1)


def test_features_that_are_not_brought_back(world: str, tmp_path: Path) -> None:
    with (
        planted(extract._encoded, "found.float().cpu()", "found.float()"),
        refused(extract.encode_groups, "features.numpy()"),
    ):
        carry_out(tmp_path, f"data.root={world}", devices=1)
