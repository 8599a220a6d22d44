"""What computes: threads, exact sums, and a GPU where there is one."""

import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from harness.base.machine import usable_cores
from svll.evaluation import KReciprocal, evaluate_ranking
from svll.evaluation.engine import comparison
from svll.evaluation.engine.feature_rows import rounding
from svll.evaluation.engine.kernels import dot
from svll.evaluation.engine.products import Products, piece_width, spread, thread_count
from tests.gpu.emulator import emulated


def test_exact_products_are_the_float64_sum_whatever_the_width():
    rng = np.random.default_rng(0)
    for width in (1, 15, 16, 17, 63, 64, 65, 200, 1280):
        a, b = rng.standard_normal((2, width)).astype(np.float32)
        exact = math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))
        assert dot(a, b) == pytest.approx(exact, rel=1e-14, abs=1e-14)
        assert dot(a, b) == dot(b, a)


def test_every_item_is_worked_on_once_in_any_number_of_pieces():
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            for items, pieces in ((0, 4), (1, 4), (7, 1), (100, 4)):
                done = np.zeros(items, int)

                def work(start, stop, done):
                    done[start:stop] += 1

                spread(work, items, done, pieces=pieces)
                assert (done == 1).all()
    finally:
        torch.set_num_threads(before)


def test_threads_are_torchs_or_what_the_environment_says():
    assert thread_count() == torch.get_num_threads()
    program = (
        "import sys; from svll.evaluation.engine.products import thread_count\n"
        "assert 'torch' not in sys.modules; print(thread_count())"
    )
    cores = str(len(usable_cores()))
    for told, expected in (("3", "3"), ("", cores), ("0", cores)):
        done = subprocess.run(
            [sys.executable, "-c", program], env=os.environ | {"OMP_NUM_THREADS": told},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout.strip() == expected


def test_a_product_is_that_of_its_blocks():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal((n, 9)).astype(np.float32) for n in (5, 7))
    products = Products()
    for rows, columns in ((5, 7), (2, 3)):  # the buffer serves again
        found = products(products.send(a[:rows]), products.send(b[:columns]))
        np.testing.assert_allclose(found, a[:rows] @ b[:columns].T, rtol=1e-5, atol=1e-6)


@pytest.mark.gpu
def test_a_gpu_gives_the_digits_of_the_cpu(gpu_rank):
    assert gpu_rank(ranked, device="cuda") == [ranked("cpu")]


def ranked(device):
    """Rank features, and rows of equal numbers, with and without re-ranking."""
    rng = np.random.default_rng(2)
    ids = rng.integers(0, 20, 50), rng.integers(0, 20, 700)
    centres = rng.standard_normal((20, 1280))
    query, gallery = (
        (centres[i] + rng.standard_normal((len(i), 1280))).astype(np.float32) for i in ids
    )
    query[:10] = 1.0
    gallery[:100] = 1 + 0.003 * rng.choice([-1.0, 1.0], (100, 1280))
    cameras = rng.integers(0, 3, 50), rng.integers(0, 3, 700)
    found = []
    for rerank in (None, KReciprocal(8, 3)):
        features = (torch.from_numpy(side).to(device) for side in (query, gallery))
        result = evaluate_ranking(*features, *ids, *cameras, rerank=rerank, top_k=5)
        found.append([result.mAP, result.mINP, result.nearest.tolist()])
    return found


def test_queries_are_sent_to_the_gpu_once(monkeypatch):
    monkeypatch.setattr(comparison, "GALLERY_BLOCK", 100)
    sent = []
    plain = Products.send
    monkeypatch.setattr(Products, "send", lambda *given: sent.append(given[1]) or plain(*given))
    with emulated():
        assert ranked("cuda") == ranked("cpu")
    assert [len(rows) for rows in sent[:8]] == [50, *[100] * 7]


def test_rows_of_equal_numbers_stay_within_the_error_that_ranking_expects():
    for width in (192, 320, 640, 1280):
        rng, place = np.random.default_rng(3), np.arange(width)
        later, step, end = (rng.choice([0.5, 2.0], (300, 1)), rng.integers(0, width, (300, 1)),
                            rng.integers(width // 4, width + 1, (300, 1)))
        rows = np.where(place < step, 1.0, later) * (place < end)
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        exact, tensor = rows.astype(float) @ rows.T.astype(float), torch.from_numpy(rows)
        for found in (rows @ rows.T, (tensor @ tensor.T).numpy()):
            assert np.abs(found - exact).max() < rounding(width)


def test_a_gpus_error_stays_within_it_in_whatever_order_it_adds():
    for width in range(1, 9000):
        size = min(piece_width(width), width)
        assert (size + math.ceil(width / size)) * 2.0**-24 <= rounding(width)


def test_constant_rows_rank_exactly_on_a_gpu_that_adds_one_product_after_another(monkeypatch):
    def one_by_one(out, a, b, *, beta):
        products = a.cpu().numpy()[:, None] * b.T.cpu().numpy()
        total = torch.from_numpy(np.cumsum(products, axis=2, dtype=np.float32)[..., -1])
        out.copy_(out.cpu() + total if beta else total)

    query = np.ones((1, 3072), np.float32)
    near = 1 + 0.003 * np.random.default_rng(4).choice([-1.0, 1.0], 3072).astype(np.float32)
    gallery = np.stack([near, query[0], -query[0]])  # the true match, and a nearer row
    labels = [0], [0, 1, 2], [0], [1, 1, 1]
    monkeypatch.setattr(torch.Tensor, "addmm_", one_by_one)
    for rerank in (None, KReciprocal(1, 1)):
        options = {"rerank": rerank, "top_k": 2}
        expected = evaluate_ranking(query, gallery, *labels, **options)
        with emulated():
            found = evaluate_ranking(query, gallery, *labels, **options)
        assert (found.mAP, found.nearest.tolist()) == (expected.mAP, [[1, 0]])
        assert expected.mAP == 0.5
