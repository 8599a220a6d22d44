"""Float32 is computed in full where that is asked for, and a caller's settings come back."""

from typing import Any

import pytest
import torch

from harness.training.precision import full_precision, use_full_precision

BACKENDS: Any = torch.backends
KINDS = {
    "cuda.matmul": BACKENDS.cuda.matmul, "cudnn.conv": BACKENDS.cudnn.conv,
    "mkldnn.matmul": BACKENDS.mkldnn.matmul, "mkldnn.conv": BACKENDS.mkldnn.conv,
}


def precisions() -> dict[str, str]:
    return {name: kind.fp32_precision for name, kind in KINDS.items()}


@pytest.mark.parametrize("level", [
    BACKENDS, BACKENDS.cudnn, BACKENDS.cudnn.conv, BACKENDS.cuda.matmul, BACKENDS.mkldnn.conv,
])
def test_products_are_full_in_the_body_and_a_callers_setting_comes_back(level: Any) -> None:
    before = level.fp32_precision
    try:
        level.fp32_precision = "tf32"
        outside = precisions()
        assert "tf32" in outside.values()
        with full_precision():
            assert set(precisions().values()) == {"ieee"}
        assert precisions() == outside
        assert level.fp32_precision == "tf32"
        level.fp32_precision = "none"  # what was not set by itself has not become so
        assert "tf32" not in {precisions()["mkldnn.conv"], level.fp32_precision}
    finally:
        level.fp32_precision = before


def test_a_failure_in_the_body_leaves_nothing_changed() -> None:
    before = precisions()
    with pytest.raises(ZeroDivisionError), full_precision():
        1 / 0  # noqa: B018
    assert precisions() == before


def test_full_from_now_on_is_what_torchs_older_and_newer_settings_say() -> None:
    cudnn, matmul = BACKENDS.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    try:
        BACKENDS.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("medium")
        use_full_precision()
        assert not {"tf32", "bf16"} & set(precisions().values())
        assert not BACKENDS.cudnn.allow_tf32
        assert not BACKENDS.cuda.matmul.allow_tf32
        BACKENDS.cudnn.set_flags(*BACKENDS.cudnn.set_flags(False))  # as torch.export does
    finally:
        BACKENDS.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(matmul)
