"""Files of weights, and checkpoints of a run: an answer is the undisturbed file's, to the digit."""

import argparse
import io
import pickle
import tempfile
import zipfile
from collections import OrderedDict, defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.base.files import read_json
from harness.runs.run import Run
from harness.training import checkpoints
from harness.training.checkpoints import Progress
from svll.models import load_model
from svll.models.clip import TINY_WEIGHTS, Clip, load_clip
from svll.models.files.checkpoint import ADDED
from svll.models.prompts import PromptLearner
from svll.models.weights import run_weights
from tests.fuzz.inputs import damaged, odd_texts
from tests.fuzz.trying import Target

SIZE = {"height": 16, "width": 8, "stride": 4}
WIDTH = 8
State = dict[str, Tensor]


# --- published weights ---


@cache
def transreid() -> State:
    """A TransReID of one block, which is a file of a few kilobytes."""
    torch.manual_seed(0)
    block = {
        "norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,),
        "norm2.bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.qkv.bias": (3 * WIDTH,), "attn.proj.weight": (WIDTH, WIDTH),
        "attn.proj.bias": (WIDTH,),
        "mlp.fc1.weight": (12, WIDTH), "mlp.fc1.bias": (12,), "mlp.fc2.weight": (WIDTH, 12),
        "mlp.fc2.bias": (WIDTH,),
    }
    shapes = {
        "base.patch_embed.proj.weight": (WIDTH, 3, 4, 4), "base.patch_embed.proj.bias": (WIDTH,),
        "base.cls_token": (1, 1, WIDTH), "base.pos_embed": (1, 9, WIDTH),
        "base.norm.weight": (WIDTH,), "base.norm.bias": (WIDTH,), "classifier.weight": (7, WIDTH),
        "base.sie_embed": (6, 1, WIDTH),
        **{f"base.blocks.0.{name}": shape for name, shape in block.items()},
    }
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def as_file(content: Any) -> bytes:
    whole = io.BytesIO()
    torch.save(content, whole)
    return whole.getvalue()


@cache
def file_of(old: bool) -> bytes:
    whole = io.BytesIO()
    torch.save(transreid(), whole, _use_new_zipfile_serialization=not old)
    return whole.getvalue()


def features(path: Path, **size: int) -> Tensor:
    model = load_model(path, **size)  # type: ignore[arg-type]
    images = torch.randn(2, 3, model.height, model.width, generator=torch.manual_seed(1))
    cameras, views = (torch.from_numpy(place) for place in model.places([3, 1]))
    with torch.no_grad():
        return model.encode_image(images, cameras, views)


@cache
def undisturbed() -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.pth"
        path.write_bytes(file_of(False))
        return features(path, **SIZE)


def read_published(content: bytes, folder: Path) -> None:
    path = folder / "w.pth"
    path.write_bytes(content)
    found = features(path, **SIZE)
    if zipfile.is_zipfile(path):  # files of torch before 1.6 have no checksums
        assert torch.equal(found, undisturbed())


HARMLESS: dict[str, Any] = {
    "best": np.float64(0.5), "args": argparse.Namespace(lr=1, path=Path("x"), more={"a": [1]}),
    "lists": defaultdict(list, {"a": [1, 2]}), "set": {1, "a"}, "array": np.arange(4),
    "device": torch.device("cpu"), "size": torch.Size([1]), "dtype": torch.float16,
    "optimizer": {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2)}}},
    "names": OrderedDict(a=1), "none": None, "number": 1e400, "text": "é", "complex": 1j,
    "generator": torch.get_rng_state(), "sparse": torch.eye(2).to_sparse(),
}


def wrapped(state: Any, prefixes: list[str], wrappers: list[str], beside: list[str]) -> Any:
    content: Any = {"".join(f"{p}." for p in prefixes) + name: t for name, t in state.items()}
    for wrapper in wrappers:
        content = {**{name: HARMLESS[name] for name in beside}, wrapper: content}
    return content


def wrappings() -> st.SearchStrategy[Any]:
    words = st.sampled_from([*sorted(ADDED), "model", "net", "ema_model", "0"])
    names = st.sampled_from(["state_dict", "model", "net", "ema", "x y", ""]) | odd_texts()
    few = st.lists(st.sampled_from(sorted(HARMLESS)), max_size=3)
    return st.tuples(st.lists(words, max_size=3), st.lists(names, max_size=4), few, st.booleans())


def read_wrapped(given: tuple[list[str], list[str], list[str], bool], folder: Path) -> None:
    """Wrap a model, possibly beside another one: then which is meant is not known."""
    *how, has_other = given
    path, content = folder / "w.pth", wrapped(transreid(), *how)
    if has_other:
        content = {"one": content, "other": {n: value + 1 for n, value in transreid().items()}}
    path.write_bytes(as_file(content))
    found = features(path, **SIZE)
    assert not has_other
    assert torch.equal(found, undisturbed())


CHANGES = {
    "transposed": lambda t: t.transpose(0, -1), "scalar": lambda t: t.flatten()[0],
    "empty": lambda t: t[:0], "thin": lambda t: t[..., :0], "longer": lambda t: torch.cat([t, t]),
    "one more axis": lambda t: t[None], "int8": lambda t: t.to(torch.int8),
    "bool": lambda t: t > 0, "complex": lambda t: t.to(torch.complex64),
    "nan": lambda t: t * torch.nan, "inf": lambda t: t * torch.inf,
    "large": lambda t: t.double() * 1e300,
    "sparse": lambda t: t.to_sparse(), "meta": lambda t: t.to("meta"), "array": lambda t: t.numpy(),
    "quantised": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
    "float8": lambda t: t.to(torch.float8_e4m3fn), "text": str, "list": lambda t: t.tolist(),
    "expanded": lambda t: t.flatten()[:1].expand(t.shape), "parameter": torch.nn.Parameter,
    "double": lambda t: t.double(), "strided": lambda t: t.T.contiguous().T if t.ndim == 2 else t,
    "gone": lambda t: None, "wide": lambda t: torch.empty(1).expand(2**40),
}


def read_changed(given: tuple[list[tuple[str, str]], dict[str, str]], folder: Path) -> None:
    """Change tensors, and add tensors of other names; an answer has the same features."""
    changes, others = given
    state: dict[str, Any] = dict(transreid())
    for name, change in changes:
        state[name] = CHANGES[change](transreid()[name])
    state |= {name: transreid()[of] for name, of in others.items() if name not in state}
    # with these, numbers or cameras are others, and rightly so
    rightly = any(change in ("expanded", "transposed") or name == "base.sie_embed"
                  for name, change in changes)
    path = folder / "w.pth"
    path.write_bytes(as_file(state))
    found = features(path, **SIZE)
    if not rightly:
        assert torch.equal(found, undisturbed())


def changed() -> st.SearchStrategy[Any]:
    name = st.sampled_from(sorted(transreid()))
    odd = st.one_of(odd_texts(), st.builds("{}{}".format, name, odd_texts()))
    return st.tuples(
        st.lists(st.tuples(name, st.sampled_from(sorted(CHANGES))), max_size=2),
        st.dictionaries(odd, name, max_size=2),
    )


# --- pickles that want to execute something ---

WORDS = [
    *(b"c" + name + b"\n" for name in (
        b"os\nsystem", b"builtins\neval", b"builtins\ngetattr", b"builtins\n__import__",
        b"builtins\nset", b"torch\nload", b"torch._utils\n_rebuild_tensor_v2", b"pathlib\nPath",
        b"torch._utils\n_rebuild_parameter", b"torch._tensor\n_rebuild_from_type_v2",
        b"torch\nFloatStorage", b"collections\nOrderedDict", b"pickle\nloads", b"torch\nTensor",
        b"torch.storage\n_load_from_bytes", b"argparse\nNamespace", b"copyreg\n_reconstructor",
    )),
    b"U\x07storage", b"U\x010", b"U\x03cpu", b"K\x01", b"J\xff\xff\xff\xff", b"N", b"\x88",
    b"}", b"]", b")", b"\x8f", b"(", b"t", b"\x85", b"\x86", b"\x87", b"R", b"R", b"R", b"b", b"b",
    b"\x81", b"\x92", b"Q", b"a", b"e", b"s", b"u", b"\x90", b"o", b"0", b"1", b"2", b"l", b"d",
    b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\xff\xff\xff\xff", b"\x94", b"\x93", b"\x82\x01",
    b"i" + b"os\nsystem\n", b"P0\n", b"U\x1dopen('executed', 'w').close()",
    b"U\x0etouch executed", b"\x8a\x02\xff\x00", b"\x96\xff\xff\xff\xff\xff\x00\x00\x00", b"\x97",
]


def read_pickle(content: bytes, folder: Path) -> None:
    """Read a file whose pickle is any row of words; nothing is executed."""
    path = folder / "w.pth"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data.pkl", content)
        for place in range(len(transreid())):
            size = 4 * list(transreid().values())[place].numel()
            file.writestr(f"a/data/{place}", bytes(size))
    try:
        load_model(path, **SIZE)  # type: ignore[arg-type]
    finally:
        assert not Path("executed").exists()


def pickled() -> st.SearchStrategy[bytes]:
    with zipfile.ZipFile(io.BytesIO(file_of(False))) as file:
        valid = file.read(next(n for n in file.namelist() if n.endswith("data.pkl")))
    rows = st.lists(st.sampled_from(WORDS), max_size=12).map(b"".join)
    place = st.integers(0, len(valid))
    inside = st.builds(lambda at, row: valid[:at] + row + valid[at:], place, rows)
    return st.one_of(rows.map(lambda row: b"\x80\x02" + row + b"."), inside, damaged(valid),
                     st.sampled_from([pickle.dumps({}, p) for p in range(6)]))


# --- weights to train from ---


@cache
def shipped() -> tuple[State, str]:
    return load_file(TINY_WEIGHTS), tiny(TINY_WEIGHTS).weights_hash


def tiny(path: Path) -> Clip:
    return load_clip("svll-tiny", str(path), height=64, width=32, stride=8)


def read_start(given: tuple[list[str], list[str], list[str], str], folder: Path) -> None:
    state, expected = shipped()
    *how, ending = given
    path = folder / f"w.{ending}"
    if ending == "safetensors":
        save_file(wrapped(state, how[0], [], []), path)
    else:
        torch.save(wrapped(state, *how), path)
    assert tiny(path).weights_hash == expected


def starts() -> st.SearchStrategy[Any]:
    shipped()  # the first model takes long, because libraries are imported
    words = st.sampled_from([*sorted(ADDED), "model", "clip", "visual"])
    names = st.sampled_from(["state_dict", "model", "net"])
    few = st.lists(st.sampled_from(sorted(HARMLESS)), max_size=2)
    return st.tuples(st.lists(words, max_size=3), st.lists(names, max_size=6), few,
                     st.sampled_from(["pt", "pth", "safetensors"]))


# --- weights of a run ---


@cache
def run_file() -> bytes:
    """A run's weights, as `test_load.py` makes them."""
    from tests.svll.models.weights.test_load import finished

    with tempfile.TemporaryDirectory() as folder:
        run, _, _ = finished(Path(folder))
        return run.weights_file.read_bytes()


@cache
def run_features() -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        path.write_bytes(run_file())
        return features(path)


def read_run_file(content: bytes, folder: Path) -> None:
    path = folder / "w.safetensors"
    path.write_bytes(content)
    assert torch.equal(features(path), run_features())


def run_files() -> st.SearchStrategy[bytes]:
    whole, _ = run_file(), run_features()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = damaged(whole[8:end])
    return st.one_of(
        damaged(whole), header.map(lambda h: whole[:8] + h + whole[end:]),
        header.map(lambda h: len(h).to_bytes(8, "little") + h + whole[end:]),
    )


def read_metadata(given: dict[str, str], folder: Path) -> None:
    """Metadata with odd values and the right checksum."""
    path = folder / "w.safetensors"
    path.write_bytes(run_file())
    tensors, about = run_weights.read_tensors(path)
    about |= given
    about["checksum"] = run_weights.checksum(tensors, about)
    save_file(tensors, path, metadata={key: value for key, value in about.items() if value != "-"})
    features(path)


def metadata() -> st.SearchStrategy[dict[str, str]]:
    def text(value: str) -> str:
        return value.encode("utf-8", "replace").decode()

    lists = st.sampled_from(["[]", "{}", "1", '{"a": 1}', '{"a": [[1], [2]]}', "[[1]]", '["a"]',
                             '{"market1501": {"cameras": [1], "views": [0]}}', "[" * 2000])
    config = st.sampled_from(["model: {name: RN50}", "data: {height: 1}", "model: {stride: 0}",
                              "data: 3", "data: {height: 10000000}", "model: {sie: camera}"])
    values = st.one_of(odd_texts().map(text), lists, config)
    keys = ("config", "side_labels", "identities", "cameras", "version", "format")
    return st.dictionaries(st.sampled_from(keys), values, max_size=2)


def read_prompts(content: bytes, folder: Path) -> None:
    run, prompts = Run(folder), _prompts()
    path = folder / "prompts.safetensors"
    path.write_bytes(content)
    run_weights.load_prompts(run, prompts)
    assert torch.equal(prompts.tokens, torch.ones(3, 2, 4))


def _prompts() -> PromptLearner:
    class Tokenizer:
        sot_token_id, eot_token_id = 0, 1

        def encode(self, text: str) -> list[int]:
            return [2]

    return PromptLearner(torch.nn.Embedding(3, 4), Tokenizer(), identities=3, tokens=2, noun="x")


def prompts_files() -> st.SearchStrategy[bytes]:
    def file(tokens: dict[str, Tensor]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            run_weights.save_tensors(Path(folder) / "a.safetensors", tokens, {"config": "a"})
            return (Path(folder) / "a.safetensors").read_bytes()

    others = [{}, {"tokens": torch.tensor(1.0)}, {"tokens": torch.ones(3)}, {"x": torch.ones(3)},
              {"tokens": torch.ones(3, 2, 4, dtype=torch.int32)},
              {"tokens": torch.full((3, 2, 4), torch.nan)}]
    return damaged(file({"tokens": torch.ones(3, 2, 4)})) | st.sampled_from(
        [file(tokens) for tokens in others])


# --- checkpoints ---


@cache
def saved() -> dict[str, bytes]:
    """The files of two checkpoints, of which the first is the best."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for epoch, score in ((2, 0.75), (3, 0.5)):
            state = {
                "format": "svll-checkpoint", "version": checkpoints.VERSION, "signature": "run",
                "progress": {"stage": "fit", "epoch": epoch, "step": 0, "metric_lines": epoch,
                             "sums": {"loss": 0.125}, "steps_total": 7, "first": {"loss": 1.5}},
                "optimizer_steps": {"a": 7}, "scaler": None, "ranks": 1, "score": score,
            }
            tensors = {kind: {"a": torch.full((3,), float(epoch))}
                       for kind in ("weights", "moments", "rng")}
            checkpoints._write(folder / f"fit-{epoch:04d}-000000", tensors, state, score, None)
        return {str(path.relative_to(folder)): path.read_bytes()
                for path in sorted(folder.rglob("*")) if path.is_file()}


def read_checkpoints(given: tuple[str, bytes | None, bool], folder: Path) -> None:
    """Damage or remove a file, in one or both checkpoints; a resume has a whole checkpoint, and the
    best one is the best."""
    name, content, in_both = given
    for other, whole in saved().items():
        (folder / other).parent.mkdir(exist_ok=True)
        (folder / other).write_bytes(whole)
    if content is None:
        (folder / name).unlink()
    else:
        for other in saved():
            if other == name or (in_both and Path(other).name == Path(name).name):
                (folder / other).write_bytes(content)
    found = checkpoints.latest(folder, signature="run")
    assert found is not None
    path, at = found
    epoch = int(path.name[4:8])
    assert at == Progress("fit", epoch, 0, epoch, {"loss": 0.125}, 7, {"loss": 1.5})
    for kind in ("weights", "moments", "rng"):
        tensors = checkpoints.read_tensors(path / f"{kind}.safetensors")
        assert torch.equal(tensors["a"], torch.full((3,), float(epoch)))
    assert read_json(path / "state.json")["optimizer_steps"] == {"a": 7}
    best = checkpoints.best_weights(folder, signature="run")
    if not (name.startswith("fit-0002") or in_both) and (name, content) != ("best.json", None):
        assert best is not None
        assert (best[0].name, best[1]) == ("fit-0002-000000", 0.75)
    if best is not None:
        assert torch.equal(best[2]["a"], torch.full((3,), float(best[0].name[4:8])))


def folders() -> st.SearchStrategy[Any]:
    def of(name: str) -> st.SearchStrategy[Any]:
        content = saved()[name]
        values = [b"[]", b"null", b"{}", b'"a"', b"[" * 100_000, b'{"name": "..", "score": 9}',
                  b'{"name": "fit-0003-000000", "score": 0.75}']
        edits = st.sampled_from([(b"2", b"3"), (b"7", b"8"), (b"null", b"{}"), (b": 0", b": 1")])
        return st.tuples(st.just(name), st.one_of(
            damaged(content), st.none(), st.sampled_from(values),
            edits.map(lambda edit: content.replace(*edit, 1))), st.booleans())

    return st.sampled_from(sorted(saved())).flatmap(of)


def published() -> st.SearchStrategy[bytes]:
    undisturbed()
    return damaged(file_of(False)) | damaged(file_of(True))


TARGETS = [
    Target("published", st.deferred(published), read_published, examples=60),
    Target("wrapped", st.deferred(lambda: wrappings()), read_wrapped, examples=40),
    Target("changed", st.deferred(changed), read_changed, examples=60),
    Target("pickles", st.deferred(pickled), read_pickle, examples=90),
    Target("starts", st.deferred(starts), read_start, examples=8),
    Target("run_weights", st.deferred(run_files), read_run_file, examples=20),
    Target("metadata", st.deferred(metadata), read_metadata, examples=15),
    Target("prompts", st.deferred(prompts_files), read_prompts, examples=40),
    Target("checkpoints", st.deferred(folders), read_checkpoints, examples=60),
]
