"""DALI's graphs for GPUs can be defined without one, though not built; wrong ones are refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.images.dali import _add_views
from harness.images.decoding import add_decoder
from harness.images.views import Resize, Transform, View

DEVICE = torch.device("cuda:0")


def define(add: Callable[[], Any]) -> None:
    """Define a graph for the first GPU."""
    from nvidia.dali import Pipeline

    pipeline = Pipeline(batch_size=4, num_threads=1, device_id=0, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(*add())


@pytest.mark.parametrize("resize", ["bicubic", "bilinear"])
def test_the_graphs_of_training_and_test_can_be_defined_for_a_gpu(resize: Resize) -> None:
    train = {"main": View(0.5, 4, 0.5), "other": View(0.5, 2, 0.5), "plain": View()}
    for views in (train, {"image": View()}):
        define(lambda views=views: _add_views(Transform(32, 16, resize, views=views), DEVICE))
    define(lambda: [add_decoder(DEVICE)])


def test_a_graph_that_a_gpu_could_not_run_is_refused() -> None:
    from nvidia.dali import fn

    for wrong, message in (
        (lambda: fn.resize(add_decoder(DEVICE), resize_x=4, no_argument=1), "no_argument"),
        (lambda: fn.resize(add_decoder(DEVICE), resize_x="wide"), "wide"),
        (lambda: fn.resize(add_decoder(DEVICE), resize_x=4, device="cpu"), "gpu"),
        (lambda: fn.crop_mirror_normalize(add_decoder(DEVICE), mirror=add_decoder(DEVICE)), "gpu"),
    ):
        with pytest.raises((KeyError, TypeError, ValueError, RuntimeError), match=message):
            define(lambda wrong=wrong: [wrong()])
