"""Dense matrix products a second that NVIDIA states for its GPUs: what a share of the peak is of.

From data sheets (of A100, H100, H200, L40S, V100) and the Ada white paper (RTX 4090), products
summed in fp32, without sparsity: where only the sparse number is stated, half of it. A GPU that is
not here by exactly its driver's name has no known peak: cards of like names differ.
"""

import re

PEAKS = {
    r"(NVIDIA )?A100-(SXM4|PCIE)-[48]0GB|NVIDIA A100 80GB PCIe": 312e12,
    r"NVIDIA H100 80GB HBM3|NVIDIA H200": 989.5e12,
    r"NVIDIA H100 PCIe": 756.5e12,
    r"NVIDIA (H100|H200) NVL": 835.5e12,
    r"NVIDIA L40S": 362.05e12,
    r"NVIDIA GeForce RTX 4090": 165.2e12,
    r"Tesla V100-SXM2-(16|32)GB": 125e12,
    r"Tesla V100-PCIE-(16|32)GB": 112e12,
}
"""Operations per second in bf16 and fp16 by name, a multiply-add being two."""
WITHOUT_BF16 = "Tesla V100"
UNKNOWN_PEAK = "MFU unknown"


def peak(name: str, precision: str) -> float | None:
    """Return the stated operations per second of the GPU that the driver calls `name`; None:
    unknown, as with a part of a GPU (MIG), whose name goes on."""
    if precision == "fp32" or (precision == "bf16" and name.startswith(WITHOUT_BF16)):
        return None
    return next((speed for known, speed in PEAKS.items() if re.fullmatch(known, name)), None)
