"""Dense matrix products a second that NVIDIA states for its GPUs: what a share of the peak is of.

From data sheets (of A100, H100, H200, L40S, V100) and the Ada white paper (RTX 4090), products
summed in fp32, without sparsity: where only the sparse number is stated, half of it. A GPU that is
not here by the very name that its driver tells has no known peak: cards of like names differ.
"""

import re

A100 = {"bf16": 312e12, "fp16": 312e12}
H100_SXM = {"bf16": 989.5e12, "fp16": 989.5e12}
H100_NVL = {"bf16": 835.5e12, "fp16": 835.5e12}
PEAKS: dict[str, dict[str, float]] = {
    r"(NVIDIA )?A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": A100,
    r"NVIDIA H100 80GB HBM3": H100_SXM,
    r"NVIDIA H100 PCIe": {"bf16": 756.5e12, "fp16": 756.5e12},
    r"NVIDIA H100 NVL": H100_NVL,
    r"NVIDIA H200": H100_SXM,
    r"NVIDIA H200 NVL": H100_NVL,
    r"NVIDIA L40S": {"bf16": 362.05e12, "fp16": 362.05e12},
    r"NVIDIA GeForce RTX 4090": {"bf16": 165.2e12, "fp16": 165.2e12},
    r"Tesla V100-SXM2-(16|32)GB": {"fp16": 125e12},  # without bf16
    r"Tesla V100-PCIE-(16|32)GB": {"fp16": 112e12},
}
"""Operations per second by name and precision, a multiply-add being two."""
UNKNOWN_PEAK = "MFU unknown"


def peak(name: str, precision: str) -> float | None:
    """Return the stated operations per second of the GPU that the driver calls `name`; None:
    unknown, as with a part of a GPU (MIG), whose name goes on."""
    found = (speeds for pattern, speeds in PEAKS.items() if re.fullmatch(pattern, name))
    return next(found, {}).get(precision)
