"""A model is found in a file however it is wrapped, and nothing of the file is executed."""

import argparse
import io
import pickle
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.base.errors import UserError
from svll.models.files.checkpoint import Kind, read_checkpoint

KIND = Kind(("visual.",), "visual.* of CLIP")
STATE = {
    "visual.proj": torch.arange(6.0).view(2, 3), "visual.bias": torch.tensor([1.5]),
    "scale": torch.tensor(2.0), "count": torch.tensor(3),
}


def saved(folder: Path, content: Any, **how: Any) -> Path:
    torch.save(content, folder / "w.pth", **how)
    return folder / "w.pth"


def prefixed(prefix: str, state: dict[str, Any] = STATE) -> dict[str, Any]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def assert_read(path: Path) -> None:
    found = read_checkpoint(path, KIND)
    assert found.keys() == STATE.keys()
    for name, value in STATE.items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_checkpoint(path, KIND)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    return message.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model.", "net.clip.",
     "model.module._orig_mod.", "_fsdp_wrapped_module.", "model._orig_mod.net."],
)
@pytest.mark.parametrize("is_old", [False, True])
def test_what_programs_put_before_names_is_left_out(
    tmp_path: Path, prefix: str, is_old: bool
) -> None:
    assert_read(saved(tmp_path, prefixed(prefix), _use_new_zipfile_serialization=not is_old))
    save_file(prefixed(prefix), tmp_path / "w.safetensors")
    assert_read(tmp_path / "w.safetensors")


def test_wrappers_inside_of_names_are_left_out(tmp_path: Path) -> None:
    names = {"visual.proj": "visual._orig_mod.proj", "visual.bias": "visual.module.bias"}
    assert_read(saved(tmp_path, {names.get(name, name): v for name, v in STATE.items()}))


@pytest.mark.parametrize(
    "keys", [["state_dict"], ["model"], ["model_state_dict"], ["net"], ["ema"], ["a", "b", "c d"]]
)
def test_the_names_of_wrappers_do_not_matter(tmp_path: Path, keys: list[str]) -> None:
    content: Any = OrderedDict(STATE)
    for key in keys:
        content = {"epoch": 3, key: content}
    assert_read(saved(tmp_path, content))


def test_a_model_in_a_list_is_found(tmp_path: Path) -> None:
    assert_read(saved(tmp_path, (3, [{"model": STATE}, {"epoch": 4}])))


class Own:
    """Of a program that is not installed here."""

    def __init__(self) -> None:
        self.size, self.names = 3, ["a"]


@pytest.mark.parametrize(
    "beside",
    [np.float64(0.5), np.arange(3), argparse.Namespace(lr=1, path=Path("x")), Own(), {1, 2},
     defaultdict(list, a=[1]), torch.device("cpu"), torch.float16, Path.cwd, {"a": [Own(), Own()]},
     {"state": {0: {"exp_avg": torch.ones(2), "step": 3}}, "param_groups": [{"lr": 0.1}]},
     torch.eye(2).to_sparse(), np.random.default_rng()],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("is_old", [False, True])
def test_harmless_objects_beside_a_model_are_left_out(
    tmp_path: Path, beside: Any, is_old: bool
) -> None:
    content = {"state_dict": STATE, "beside": beside}
    assert_read(saved(tmp_path, content, _use_new_zipfile_serialization=not is_old))


def test_tensors_come_back_whatever_their_layout_and_share_no_numbers(tmp_path: Path) -> None:
    flat = torch.arange(12.0)
    state = {
        "visual.a": flat[2:8].view(2, 3), "visual.b": flat[2:8].view(2, 3).T, "visual.c": flat[::5],
        "visual.d": flat[:1].expand(3), "visual.e": torch.nn.Parameter(flat), "visual.f": flat[:0],
        "visual.half": flat.half(), "visual.bf16": flat.bfloat16(), "visual.bool": flat > 3,
    }
    for is_old in (False, True):
        path = saved(tmp_path, state, _use_new_zipfile_serialization=not is_old)
        found = read_checkpoint(path, KIND)
        for name, value in state.items():
            assert torch.equal(found[name], value), name
            assert found[name].is_contiguous()
        found["visual.a"].zero_()
        assert torch.equal(found["visual.b"], state["visual.b"])


# --- what is not known ---


def test_two_different_models_are_refused_with_both_names(tmp_path: Path) -> None:
    other = {name: value + 1 for name, value in STATE.items()}
    models = {"last": {"model": STATE}, "ema": prefixed("module.", other)}
    message = refusal(saved(tmp_path, models))
    assert message == ("holds two different models: last.model and ema; save the one that you mean "
                       "in a separate file")
    assert_read(saved(tmp_path, {"model": STATE, "state_dict": prefixed("module.")}))


def test_two_different_tensors_of_one_name_are_refused(tmp_path: Path) -> None:
    both = STATE | {"module.visual.proj": STATE["visual.proj"] + 1}
    message = refusal(saved(tmp_path, {"net": both}))
    assert message.startswith("net has two different tensors named visual.proj, ")
    assert_read(saved(tmp_path, STATE | {"module.visual.proj": STATE["visual.proj"].clone()}))


def test_names_that_begin_in_different_ways_are_refused(tmp_path: Path) -> None:
    message = refusal(saved(tmp_path, prefixed("model.") | {"loss.centers": torch.ones(2)}))
    assert message.startswith("its tensors' names begin in different ways (model.visual.proj, "
                              "loss.centers); save the model's own state_dict()")


@pytest.mark.parametrize(
    "value",
    [np.ones(3), torch.eye(2).to_sparse(), torch.ones(2).to(torch.float8_e4m3fn), None, [1.0],
     torch.ones(2).to("meta"), torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)],
    ids=["array", "sparse", "float8", "none", "list", "meta", "quantised"],
)
def test_what_should_be_a_tensor_and_is_none_is_named(tmp_path: Path, value: Any) -> None:
    message = refusal(saved(tmp_path, STATE | {"visual.extra": value}))
    assert message.startswith("not read, because its visual.extra is no tensor, or a sparse")


@pytest.mark.parametrize("is_old", [False, True])
def test_a_whole_module_is_refused_with_what_to_save(tmp_path: Path, is_old: bool) -> None:
    module = torch.nn.Linear(2, 2)
    for content in (module, {"epoch": 3, "net": module}):
        path = saved(tmp_path, content, _use_new_zipfile_serialization=not is_old)
        assert refusal(path).startswith("holds no tensors, but torch.nn.modules.linear.Linear; ")


def test_models_deep_inside_of_a_file_count_too(tmp_path: Path) -> None:
    content: dict[str, Any] = STATE
    for _ in range(9):
        content = {"in": content}
    assert_read(saved(tmp_path, content))
    other = {name: value + 1 for name, value in STATE.items()}
    assert "holds two different models" in refusal(saved(tmp_path, content | {"model": other}))
    for _ in range(200):
        content = {"in": content}
    assert "more than 100 of its mappings" in refusal(saved(tmp_path, content))


def test_mappings_inside_of_themselves_end(tmp_path: Path) -> None:
    content: dict[str, Any] = {"model": STATE}
    content["self"] = content
    assert_read(saved(tmp_path, content))


# --- damage ---


def test_a_flipped_bit_of_any_number_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path, STATE)
    whole = path.read_bytes()
    place = whole.index(np.float32(5).tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    assert torch.load(path)["visual.proj"][1, 2] != 5  # torch does not notice
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, is_old: bool) -> None:
    path = saved(tmp_path, STATE, _use_new_zipfile_serialization=not is_old)
    whole = path.read_bytes()
    for end in range(0, len(whole), 23):
        path.write_bytes(whole[:end])
        assert "damaged" in refusal(path)


# --- nothing is executed ---


def forged(folder: Path, content: bytes) -> Path:
    with zipfile.ZipFile(folder / "w.pth", "w") as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/data/0", bytes(24))
    return folder / "w.pth"


PROJ = b"((U\x07storagectorch\nFloatStorage\nU\x010U\x03cpuK\x06tQK\x00K\x02K\x03\x86K\x03K\x01\x86"
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"


def tensor(before: bytes = b"") -> bytes:
    """The words of a mapping with visual.proj, after others."""
    return b"\x80\x02" + before + b"}U\x0bvisual.proj" + REBUILD + PROJ + b"\x89}tRs."


@pytest.mark.parametrize(
    "words",
    [
        b"cos\nsystem\nU\x0etouch executed\x85R0",
        b"cbuiltins\neval\nU\x1dopen('executed', 'w').close()\x85R0",
        b"cbuiltins\nexec\nU\x1dopen('executed', 'w').close()\x85R0",
        b"cbuiltins\ngetattr\ncbuiltins\n__import__\nU\x02os\x85RU\x06system\x86R"
        b"U\x0etouch executed\x85R0",
        b"cos\nsystem\nU\x0etouch executed\x85\x810", b"(U\x0etouch executedios\nsystem\n0",
        b"(cos\nsystem\nU\x0etouch executedo0", b"cpathlib\nPath\nU\x08executed\x85R}b0",
        b"csubprocess\ngetoutput\n)R}U\x0c__setstate__cos\nsystem\nsb0",
        b"ctorch._tensor\n_rebuild_from_type_v2\n(cos\nsystem\nNU\x0etouch executed\x85}tR0",
        b"ctorch._utils\n_rebuild_parameter\ncos\nsystem\nU\x0etouch executed\x85R\x85R0",
        b"cbuiltins\nset\n)RN}U\x08__call__cos\nsystem\ns\x86b0",
        b"ctorch\nload\nU\x05w.pth\x85R0", b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R0",
        b"cpickle\nloads\nU\x1fcos\nsystem\n(U\x0etouch executedtR.\x85R0",
        b"ctorch.storage\n_load_from_bytes\nU\x03abc\x85R0",
    ],
)
def test_words_that_would_execute_code_are_read_as_nothing(
    tmp_path: Path, words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_checkpoint(forged(tmp_path, tensor(words)), KIND)
    assert torch.equal(found["visual.proj"], torch.zeros(2, 3))
    assert not (tmp_path / "executed").exists()


def test_these_words_execute_code_where_pickle_reads_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(b"\x80\x02cbuiltins\nexec\nU\x1dopen('executed', 'w').close()\x85R.")
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "words",
    [
        b"cos\nsystem\n(U\x01aQ0", b"Pos.system\n0", b"(U\x06modulecos\nsystem\nU\x010NK\x01tQ0",
        b"cos\nsystem\nN}U\x0c__setstate__Ns\x86b0", b"\x82\x010",
        REBUILD + b"N(U\x08__code__cos\nsystem\nd\x86b0", REBUILD + b"(Ntb0",
        b"ctorch\nFloatStorage\nU\x0etouch executed\x85R0", b"ctorch\nFloatStorage\n)\x810",
        REBUILD + b"(NK\x00K\x01\x85K\x01\x85tR0", b"r\xff\xff\xff\xff0", b"Nr\xff\xff\xff\x7f0",
        REBUILD + b"(U\x07storageNU\x010NK\x01tQK\x00U\x01a\x85K\x01\x85tR0",
        b"\x96\xff\xff\xff\xff\xff\x00\x00\x000",
        b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7f0",
    ],
)
def test_words_that_mean_nothing_are_refused_and_change_nothing(
    tmp_path: Path, words: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(forged(tmp_path, tensor(words)))
    assert not (tmp_path / "executed").exists()
    found = read_checkpoint(forged(tmp_path, tensor()), KIND)
    assert torch.equal(found["visual.proj"], torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("size", "stride"),
    [(b"K\x02K\x04\x86", b"K\x03K\x01\x86"), (b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
     (b"\x8a\x06\x00\x00\x00\x00\x00\x01\x85", b"K\x00\x85")],
    ids=["beyond the numbers", "negative", "huge"],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path: Path, size: bytes, stride: bytes) -> None:
    changed = tensor().replace(b"K\x02K\x03\x86K\x03K\x01\x86", size + stride)
    assert "damaged" in refusal(forged(tmp_path, changed))


def test_a_tensor_with_attributes_is_read_as_a_plain_one(tmp_path: Path) -> None:
    marked: Tensor = torch.nn.Parameter(STATE["visual.proj"].clone())
    marked.note = Own()  # type: ignore[attr-defined]
    whole = io.BytesIO()
    torch.save(STATE | {"visual.proj": marked}, whole)
    (tmp_path / "w.pth").write_bytes(whole.getvalue())
    assert_read(tmp_path / "w.pth")
