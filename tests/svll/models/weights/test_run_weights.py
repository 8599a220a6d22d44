"""What a step leaves is read back whole, or refused with both sizes."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from harness.base.errors import UserError
from harness.runs.run import Run
from svll.config import Config
from svll.data.side_labels import SideLabels
from svll.models import load_model
from svll.models.clip import Clip, load_clip
from svll.models.prompts import PromptLearner
from svll.models.reid import ReIDModel, SideInformation
from svll.models.weights import run_weights as storage
from svll.models.weights.run_weights import save_model

LABELS = SideLabels({"market1501": [1, 3, 8]}, {"market1501": [0]})


@pytest.fixture(scope="module")
def clip() -> Clip:
    return load_clip("svll-tiny", None, height=64, width=32, stride=8)


def prompts(clip: Clip, identities: int, tokens: int = 4) -> PromptLearner:
    return PromptLearner(
        clip.text.token_embedding, clip.tokenizer, identities=identities, tokens=tokens,
        noun="person",
    )


def model(clip: Clip, cameras: int) -> ReIDModel:
    side = SideInformation("camera", cameras=cameras, views=1, width=128, weight=1.0)
    return ReIDModel(clip.image, side)


def saved_model(clip: Clip, folder: Path) -> tuple[Run, ReIDModel]:
    run, saved = Run(folder), model(clip, 3)
    text = torch.randn(5, 128)
    save_model(
        run.weights_file, saved.state_dict(), Config(), text=text, side_labels=LABELS,
        identities=len(text),
    )
    return run, saved


def test_prompts_come_back_as_they_were(clip: Clip, tmp_path: Path) -> None:
    run, saved, other = Run(tmp_path), prompts(clip, 6), prompts(clip, 6)
    storage.save_prompts(run, saved, Config())
    assert not torch.equal(saved.tokens, other.tokens)
    storage.load_prompts(run, other)
    assert torch.equal(saved.tokens, other.tokens)


def test_prompts_of_other_identities_are_reported_with_both_counts(
    clip: Clip, tmp_path: Path
) -> None:
    run = Run(tmp_path)
    storage.save_prompts(run, prompts(clip, 6), Config())
    message = r"prompts\.safetensors: prompts of 6 identities, the training part has 8; put it back"
    with pytest.raises(UserError, match=message):
        storage.load_prompts(run, prompts(clip, 8))


def test_prompts_of_another_length_are_reported_with_both_sizes(clip: Clip, tmp_path: Path) -> None:
    run = Run(tmp_path)
    storage.save_prompts(run, prompts(clip, 6), Config())
    message = r"tokens is \[6, 4, 128\] in the file, \[6, 2, 128\] here; put it back"
    with pytest.raises(UserError, match=message):
        storage.load_prompts(run, prompts(clip, 6, tokens=2))


def test_a_model_comes_back_as_it_was(clip: Clip, tmp_path: Path) -> None:
    run, saved = saved_model(clip, tmp_path)
    other = model(load_clip("svll-tiny", None, height=64, width=32, stride=8, seed=1), 3)
    before = {id(parameter) for parameter in other.parameters()}
    storage.load_run_weights(run, other)
    assert {id(parameter) for parameter in other.parameters()} == before
    expected = saved.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())


def test_a_model_of_other_cameras_is_reported_with_both_sizes(clip: Clip, tmp_path: Path) -> None:
    run, _ = saved_model(clip, tmp_path)
    message = r"side.vectors is \[3, 128\] in the file, \[4, 128\] here; put it back as it was"
    with pytest.raises(UserError, match=message):
        storage.load_run_weights(run, model(clip, 4))


def test_a_model_file_says_what_it_is(clip: Clip, tmp_path: Path) -> None:
    run, _ = saved_model(clip, tmp_path)
    with safe_open(run.weights_file, framework="np") as file:
        about = file.metadata()
        assert file.get_tensor("text").shape == (5, 128)
    assert (about["format"], about["version"]) == ("svll-weights", "1")
    assert SideLabels.from_json(about["side_labels"]) == LABELS
    assert "sie_unseen: none" in about["config"]


@pytest.mark.parametrize("content", [b"", b"truncated file"])
def test_a_damaged_file_is_named(clip: Clip, tmp_path: Path, content: bytes) -> None:
    run, saved = saved_model(clip, tmp_path)
    run.weights_file.write_bytes(content)
    with pytest.raises(UserError, match=r"model\.safetensors: cannot be used .*put it back"):
        storage.load_run_weights(run, saved)


# --- what was changed ---


def test_a_flipped_bit_anywhere_in_a_models_file_is_noticed(clip: Clip, tmp_path: Path) -> None:
    run, _ = saved_model(clip, tmp_path)
    whole = run.weights_file.read_bytes()
    header = int.from_bytes(whole[:8], "little")
    for place in (*range(9, 8 + header, 97), 9 + header, len(whole) // 2, len(whole) - 1):
        content = bytearray(whole)
        content[place] ^= 1
        run.weights_file.write_bytes(content)
        with pytest.raises(UserError):
            load_model(run.weights_file)


def test_changed_prompts_are_refused_and_older_ones_are_read(clip: Clip, tmp_path: Path) -> None:
    run, saved, other = Run(tmp_path), prompts(clip, 6), prompts(clip, 6)
    storage.save_prompts(run, saved, Config())
    path = run.folder / "prompts.safetensors"
    tensors, about = storage.read_tensors(path)
    changed = {"tokens": tensors["tokens"] + 1}
    save_file(changed, path, metadata=about)
    with pytest.raises(UserError, match=r"prompts\.safetensors: cannot be used .*its checksum"):
        storage.load_prompts(run, other)
    save_file(changed, path, metadata={"config": about["config"]})  # no checksum to compare with
    storage.load_prompts(run, other)
    assert torch.equal(other.tokens, saved.tokens + 1)


@pytest.mark.parametrize("shape", [(), (6,), (6, 4, 128, 1)])
def test_prompts_with_other_axes_are_refused(
    clip: Clip, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    run = Run(tmp_path)
    storage.save_tensors(run.folder / "prompts.safetensors", {"tokens": torch.ones(shape)}, {})
    with pytest.raises(UserError, match="in the file, expected 3 axes"):
        storage.load_prompts(run, prompts(clip, 6))
