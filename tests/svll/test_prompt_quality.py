"""What stage 1 tells of its prompts, against plain loops."""

import numpy as np
import pytest
import torch

from svll import prompt_quality


@pytest.mark.parametrize("piece", [7, 30, 4096])
def test_the_margin_is_the_mean_lead_over_the_nearest_other_prompt(
    monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(prompt_quality, "PIECE", piece)
    random = torch.Generator().manual_seed(3)
    features = torch.randn(30, 8, generator=random)
    text, labels = torch.randn(6, 8, generator=random), torch.arange(30) % 6
    leads = []
    for row, label in zip(features.numpy(), labels.tolist(), strict=True):
        cosines = [row @ t / np.linalg.norm(row) / np.linalg.norm(t) for t in text.numpy()]
        leads.append(cosines[label] - max(c for n, c in enumerate(cosines) if n != label))
    found = prompt_quality.margin(features, labels, text)
    assert found == pytest.approx(np.mean(leads), abs=1e-6)
    assert prompt_quality.margin(text[labels], labels, text) > 0


def test_images_are_mixtures_of_the_identities_whose_prompts_are_near() -> None:
    text = torch.eye(4)
    rows = prompt_quality.described(torch.tensor([[9.0, 0, 0, 0], [1.0, 1.0, 0, 0]]), text)
    assert rows.square().sum(dim=1).tolist() == pytest.approx([1.0, 1.0])
    assert rows[0].square().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-6)
    assert rows[1].square().tolist() == pytest.approx([0.5, 0.5, 0, 0], abs=1e-6)
    # cosines of these are the overlap of the mixtures
    assert float(rows[0] @ rows[1]) == pytest.approx(0.5**0.5)
