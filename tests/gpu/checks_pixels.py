"""Pixels: DALI's decoders and views on the GPU against those of the CPU, in grey levels."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from harness.base.machine import usable_cores
from harness.images.cpu import CpuViews
from harness.images.dali import DaliViews
from harness.images.decoding import Decoder, decode_pipeline, file_names
from harness.images.views import Transform, View, draw_changes
from harness.training import ranks
from tests import picture_files
from tests.benchmarks.sizes import here
from tests.gpu.checks import Extent, Finding

CPU = torch.device("cpu")
DECODED = 8.0, 1.0
"""The largest and the mean difference that decoders may have, in grey levels. DALI's own test of
the mean is 1. A level or two of nvJPEG's transform are some four in a colour; colours of fewer
pixels than the grey add to that."""
VIEWED = 16.0, 1.25
"""The largest and the mean difference of views: on a CPU DALI's resize and ours are up to 6.5
apart, 0.25 in the mean, and an enlarged edge overshoots what the decoders differ by."""
ROTATIONS = tuple(picture_files.STORED)


def decoders(_: Extent) -> Iterator[Finding]:
    """Files of every kind and EXIF orientation by both decoders."""
    image = picture_files.picture(size=(128, 256))
    with tempfile.TemporaryDirectory() as name:
        files = picture_files.write(Path(name), image)
        turned = [
            picture_files.turned(Path(name) / f"turned{way}.jpg", image, way) for way in ROTATIONS
        ]
        groups = {
            "JPEGs": [file for file in files.values() if file.suffix in (".jpg", ".jpeg")],
            "turned JPEGs": turned, "lossy WebP": [files["lossy.webp"]],
        }
        lossy = {file for group in groups.values() for file in group}
        groups["lossless files"] = [file for file in files.values() if file not in lossy]
        for kind, paths in groups.items():
            bounds = (0.0, 0.0) if kind == "lossless files" else DECODED
            yield compared(f"decoders: {kind}", [str(path) for path in paths], bounds)


def compared(name: str, paths: Sequence[str], bounds: tuple[float, float]) -> Finding:
    """Compare the decoders on some files, of which one that fails does not hide the others."""
    decode = [_decoder(CPU), _decoder(ranks.device())]
    largest, means, wrong = 0.0, [], []
    for path in paths:
        short = Path(path).name
        try:
            one, other = (each(path) for each in decode)
        except RuntimeError as error:  # with which a pipeline ends
            wrong.append(f"{short}: {str(error).strip().splitlines()[0]}")
            decode = [_decoder(CPU), _decoder(ranks.device())]
            continue
        if one.shape != other.shape:
            wrong.append(f"{short}: {other.shape} instead of {one.shape}")
            continue
        difference = np.abs(one.astype(np.int16) - other.astype(np.int16))
        if difference.max() > bounds[0] or difference.mean() > bounds[1]:
            wrong.append(f"{short}: {difference.max()}, mean {difference.mean():.2f}")
        largest, means = max(largest, float(difference.max())), [*means, difference.mean()]
    mean = float(np.mean(means)) if means else float("nan")
    return Finding(
        name, not wrong, f"{len(paths)} files: largest {largest:.0f}, mean {mean:.3f} levels",
        "; ".join(wrong) and f"over {bounds[0]:g}, mean {bounds[1]:g}: {'; '.join(wrong)}",
        {"largest": largest, "mean": mean, "files": len(paths)},
    )


def _decoder(device: torch.device) -> Callable[[str], NDArray[np.uint8]]:
    """Return what decodes a file on a device, to pixels on the CPU."""
    pipeline = decode_pipeline(1, 1, device)

    def decoded(path: str) -> NDArray[np.uint8]:
        pipeline.feed_input("files", file_names([path]))
        pipeline.schedule_run()
        [images] = pipeline.share_outputs()
        on_cpu: Any = images.as_cpu() if device.type == "cuda" else images
        found = np.array(on_cpu.at(0))
        pipeline.release_outputs()
        return found

    return decoded


def broken_files(_: Extent) -> Iterator[Finding]:
    """Whether the GPU's decoder names damaged files, and lives on."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sound, cut, none = (folder / f"{word}.jpg" for word in ("sound", "cut", "none"))
        picture_files.picture(size=(128, 256)).save(sound)
        content = sound.read_bytes()
        cut.write_bytes(content[: len(content) // 2])
        none.write_bytes(b"no image")
        decoder = Decoder(4, 2, ranks.device())
        faults = [Path(path).name for path, _ in decoder.faults([str(sound), str(cut), str(none)])]
        after = decoder.faults([str(sound)])
    yield Finding(
        "the decoder names broken files", faults == [cut.name, none.name] and not after,
        f"named: {', '.join(faults)}", "a sound file fails afterwards" if after else "",
    )


def views(extent: Extent) -> Iterator[Finding]:
    """Views of training and of tests by both makers."""
    sizes = extent.sizes or here()
    training = {
        "main": View(flip=0.5, pad=10, erase=0.5), "plain": View(flip=0.5),
        "other": View(flip=0.5, pad=10, erase=0.5, erase_area=(0.33, 1 / 3)),
    }
    with tempfile.TemporaryDirectory() as name:
        paths = _photos(Path(name), extent.images)
        for kind, resize, each in (
            ("training", "bicubic", training), ("tests", "bilinear", {"test": View()}),
        ):
            transform = Transform(sizes.height, sizes.width, resize, views=each)
            yield _viewed(f"views of {kind}, {resize}", paths, transform)


def _photos(folder: Path, count: int) -> list[str]:
    """Write JPEGs of edges and smooth colours, some larger and some smaller than the views."""
    paths = []
    for number in range(count):
        size = [(64, 128), (48, 140), (128, 256), (200, 500)][number % 4]
        picture = np.array(picture_files.picture(number, size))
        picture[size[1] // 3 : size[1] // 2, size[0] // 4 : size[0] // 2] = number % 256
        path = folder / f"{number}.jpg"
        picture_files.Image.fromarray(picture).save(path, quality=90)
        paths.append(str(path))
    return paths


def _viewed(name: str, paths: Sequence[str], transform: Transform) -> Finding:
    count = len(paths)
    changes = draw_changes(transform, 1, 1, np.arange(count, dtype=np.int64))
    threads = len(usable_cores())
    makers = [
        CpuViews(transform, count, threads, CPU),
        DaliViews(transform, count, threads, ranks.device()),
    ]
    with ExitStack() as stack:
        for maker in makers:
            stack.enter_context(closing(maker))
        made, others = ([view.cpu() for view in maker.begin(paths, changes)()] for maker in makers)
    scale = 255 * torch.tensor(transform.std)[:, None, None]
    found = [(one - other).abs() * scale for one, other in zip(made, others, strict=True)]
    largest = max(float(each.max()) for each in found)
    mean = float(torch.stack([each.mean() for each in found]).mean())
    passed = largest <= VIEWED[0] and mean <= VIEWED[1]
    return Finding(
        name, passed, f"{count} images: largest {largest:.1f}, mean {mean:.3f} levels",
        "" if passed else f"over {VIEWED[0]:g}, mean {VIEWED[1]:g}",
        {"largest": largest, "mean": mean, "images": count},
    )


CHECKS = {"decoders": (decoders, broken_files), "views": (views,)}
