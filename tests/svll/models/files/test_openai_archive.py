"""TorchScript archives are read as torch reads them, and nothing in them is executed."""

import json
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn

from harness.base.errors import UserError
from svll.models.clip import load_clip
from svll.models.files.openai_archive import is_archive, read_archive

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


class Leaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.register_buffer("counts", torch.arange(4))
        self.plain = torch.ones(2)  # an attribute: no part of a state dict
        self.sizes = [1, 2]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.counts


class Tree(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.leaf = Leaf()
        self.body = nn.Sequential(nn.Linear(4, 2), nn.GELU(), nn.BatchNorm1d(2))
        self.turned = nn.Parameter(torch.randn(3, 2).T)  # not contiguous
        self.halves = nn.Parameter(torch.randn(5).half())
        self.tied = self.body[0]
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.leaf(x)) @ self.turned


def archived(folder: Path, module: nn.Module, example: Tensor | None) -> tuple[Path, Any]:
    """Save a module by script, or by trace where there is an example."""
    module.eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if example is None:
            scripted = torch.jit.script(module)
        else:
            scripted = torch.jit.trace(module, example, check_trace=False)
        path = folder / "ViT-B-16.pt"
        scripted.save(str(path))
    return path, scripted


@pytest.mark.parametrize("example", [None, torch.zeros(2, 3)])
def test_an_archive_gives_the_state_dict_that_torch_would_give(
    tmp_path: Path, example: Tensor | None
) -> None:
    path, scripted = archived(tmp_path, Tree(), example)
    expected = dict(scripted.state_dict())
    del expected["input_resolution"]
    found = read_archive(path)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value.float() if name == "halves" else value)
        assert found[name].dtype == (torch.float32 if name == "halves" else value.dtype)


def test_an_archive_is_distinguished_from_a_plain_checkpoint(tmp_path: Path) -> None:
    path, _ = archived(tmp_path, Tree(), None)
    assert is_archive(path)
    torch.save(Tree().state_dict(), tmp_path / "plain.pt")
    assert not is_archive(tmp_path / "plain.pt")
    (tmp_path / "text").write_text("no zip")
    assert not is_archive(tmp_path / "text")


# --- files that want more ---


class Harmful:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.function, self.arguments


def forged(folder: Path, content: bytes, **others: bytes) -> Path:
    path = folder / "forged.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/constants.pkl", b"")
        for name, data in others.items():
            file.writestr(f"a/{name}", data)
    return path


def test_a_pickle_that_calls_a_function_is_refused_and_not_run(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    path = forged(tmp_path, pickle.dumps({"visual": Harmful(Path.touch, mark)}, protocol=2))
    with pytest.raises(UserError, match=r"forged\.pt: not read, because it wants to execute"):
        read_archive(path)
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        ("builtins", "eval"), ("os", "system"), ("torch", "load"), ("torch._utils", "_rebuild"),
        ("torch", "nn"), ("collections", "deque"), ("__torchy__", "Module"),
        ("torch.jit._pickle", "build_bomb"),
    ],
)
def test_every_other_name_is_refused(tmp_path: Path, name: tuple[str, str]) -> None:
    content = b"\x80\x02c" + "\n".join(name).encode() + b"\n."
    with pytest.raises(UserError, match=f"wants to execute {name[0]}.{name[1]}"):
        read_archive(forged(tmp_path, content))


def rewritten(path: Path, entry: str, data: bytes, how: int = zipfile.ZIP_STORED) -> Path:
    """Copy an archive with one entry replaced."""
    copy = path.with_name("rewritten.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if name.endswith(f"/{entry}"):
                new.writestr(name, data, compress_type=how)
            else:
                new.writestr(name, old.read(name))
    return copy


@pytest.mark.parametrize(
    ("data", "how"), [(b"1234", zipfile.ZIP_STORED), (bytes(48), zipfile.ZIP_DEFLATED)]
)
def test_storages_of_another_size_or_compressed_are_refused(
    tmp_path: Path, data: bytes, how: int
) -> None:
    path, _ = archived(tmp_path, nn.Linear(3, 4), torch.zeros(1, 3))
    with pytest.raises(UserError, match=r"storage 0 is not 12 numbers of torch\.float32"):
        read_archive(rewritten(path, "data/0", data, how))


@pytest.mark.parametrize(
    ("entry", "data", "message"),
    [
        ("byteorder", b"big", "big-endian"),
        ("data.pkl", b"", "damaged"),
        ("data.pkl", b"\x80\x02N.", "its root is no module"),
        ("data.pkl", b"\x80\x02c__torch__\nModule\n)\x81.", "damaged"),
    ],
)
def test_other_damage_is_reported_with_the_file(
    tmp_path: Path, entry: str, data: bytes, message: str
) -> None:
    path, _ = archived(tmp_path, nn.Linear(3, 4), torch.zeros(1, 3))
    with pytest.raises(UserError, match=rf"rewritten\.pt: .*{message}"):
        read_archive(rewritten(path, entry, data))


def test_a_truncated_archive_is_named(tmp_path: Path) -> None:
    path, _ = archived(tmp_path, nn.Linear(3, 4), torch.zeros(1, 3))
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(UserError, match=r"ViT-B-16\.pt"):
        read_archive(path)


# --- as weights ---

TEXT = {"context_length": 77, "vocab_size": 1024, "width": 64, "heads": 1, "layers": 1}
VISION = {"image_size": 32, "layers": 2, "width": 64, "patch_size": 16}


@pytest.fixture
def clip_archive(tmp_path: Path) -> tuple[Path, Any]:
    """An archive of a small CLIP in OpenAI's names, and open_clip's model of it."""
    for name, quick in (("svll-jit", False), ("svll-jit-quickgelu", True)):
        config = {"embed_dim": 32, "quick_gelu": quick, "vision_cfg": VISION, "text_cfg": TEXT}
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path)
    torch.manual_seed(2)
    model = open_clip.create_model("svll-jit-quickgelu")

    class Archived(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, child in model.named_children():
                setattr(self, name, child)
            for name, parameter in model.named_parameters(recurse=False):
                setattr(self, name, parameter)
            self.register_buffer("context_length", torch.tensor(77))
            self.attn_mask = model.attn_mask

        def forward(self, x: Tensor) -> Tensor:
            return self.visual(x)

    path, _ = archived(tmp_path, Archived(), torch.zeros(1, 3, 32, 32))
    return path, model


def test_an_archive_loads_as_weights_of_a_quickgelu_model(clip_archive: tuple[Path, Any]) -> None:
    path, model = clip_archive
    clip = load_clip("svll-jit-quickgelu", str(path), height=32, width=32, stride=None)
    images = torch.randn(2, 3, 32, 32)
    tokens = torch.tensor([[1000, 5, 7, 1023]])
    with torch.no_grad():
        torch.testing.assert_close(clip.image(images).fp, model.encode_image(images))
        padded = torch.nn.functional.pad(tokens, (0, 73))
        found = clip.text(clip.text.token_embedding(tokens))
        torch.testing.assert_close(found, model.encode_text(padded), rtol=1e-5, atol=1e-5)


def test_an_archive_in_a_gelu_model_is_refused_with_the_right_name(
    clip_archive: tuple[Path, Any]
) -> None:
    path, _ = clip_archive
    with pytest.raises(UserError, match=r"model\.name=svll-jit-quickgelu$"):
        load_clip("svll-jit", str(path), height=32, width=32, stride=None)


def test_an_archive_of_another_architecture_is_reported_with_both_sizes(
    clip_archive: tuple[Path, Any]
) -> None:
    path, _ = clip_archive
    sizes = r"ViT-B-16\.pt in ViT-B-32-quickgelu.*\[77, 64\] in the file, \[77, 512\] here"
    with pytest.raises(UserError, match=sizes):
        load_clip("ViT-B-32-quickgelu", str(path), height=32, width=32, stride=None)
