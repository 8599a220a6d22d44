"""The name of a feature file changes with all that changes its content, and with nothing else."""

import pytest

from harness.config.build import build
from harness.config.sources import parse_overrides
from svll.config import Config
from svll.features import feature_hashes as module
from svll.features.extract import Reader
from svll.features.feature_hashes import feature_key


def key(
    *overrides: str, fingerprint: str = "f", weights: str = "w", device: str = "cpu",
    precision: str = "fp32", batch: int = 4, threads: int = 1, on_cpu: bool = False,
) -> str:
    config = build(Config, parse_overrides(overrides))
    reader = Reader(config.data.height, config.data.width, batch, threads, device, precision,
                    on_cpu=on_cpu)
    return feature_key(fingerprint, weights, config, reader)


def test_frozen_features_have_a_key_of_their_own_for_all_that_changes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = [
        key(), key(fingerprint="other"), key(weights="other"), key(precision="bf16"),
        key(device="cuda"), key("data.height=128"), key("data.width=256"), key("model.stride=16"),
        key("model.name=ViT-B-16"),  # the same weights, another activation
    ]
    monkeypatch.setattr(module, "TEST_RESIZE", "bicubic")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert all(len(k) == 16 and int(k, 16) >= 0 for k in keys)


@pytest.mark.parametrize(
    "override",
    [
        "seed=2", "stage1.lss_weight=0", "stage2.lr=1", "model.prompt_tokens=2",
        "data.validation=0.2",
    ],
)
def test_trials_of_a_sweep_share_the_key(override: str) -> None:
    assert key(override) == key()
    assert key(batch=9, threads=3) == key()


def test_images_decoded_on_the_cpu_for_a_gpu_have_the_key_of_the_cpus() -> None:
    assert key(device="cuda", on_cpu=True) == key() != key(device="cuda")
