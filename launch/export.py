"""The image encoder of trained weights as an ONNX file, checked against torch.

    python launch/export.py --weights runs/market1501/0a1b2c3d4e5f --out model.onnx
    python launch/export.py --weights ViT-B-16_60.pth --out model.onnx --images photos

Input "images": normalised float32 [B, 3, H, W], any B; output "features": [B, D], not normalised.
The file's metadata describes the preprocessing. Needs the extra: pip install '.[export]'
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.base.files import check_writable
from harness.base.paths import NO_UTF8, refuse
from launch.cli import command, refuse_without

MAX_IMAGES = 24
"""Limit on images to compare on; more would show nothing new."""


@command(__doc__)
def main(
    weights: Annotated[Path, typer.Option(
        help="A weights file, a finished run's folder, or a published .pth.")],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    images: Annotated[Path | None, typer.Option(
        help="A folder of images to compare on, besides random ones.")] = None,
    camera: Annotated[int | None, typer.Option(
        help="Camera whose side information to build in, as its dataset numbers it (Market-1501's "
             "c1: 1). [default: none]")] = None,
    dataset: Annotated[str | None, typer.Option(
        help="With --camera: its dataset, if the model was trained on several.")] = None,
    height: Annotated[int | None, typer.Option(
        help="Input height, if a published file does not hold it.")] = None,
    width: Annotated[int | None, typer.Option(
        help="Input width, if a published file does not hold it.")] = None,
    stride: Annotated[int | None, typer.Option(
        help="Patch stride, if a published file does not hold it.")] = None,
) -> int:
    """Export, compare with torch, and print the largest difference."""
    refuse_without("--camera", camera is not None, {"--dataset": dataset})
    refuse("--out", out, {NO_UTF8: "cannot be in the path of an ONNX file"})
    check_writable(out)  # before the work
    from svll.data.readers.common import find_images

    found = find_images(images)[:MAX_IMAGES] if images else []
    from svll.models import load_model
    from svll.models.weights.onnx_export import export_onnx  # torch: after the checks

    model = load_model(weights, height=height, width=width, stride=stride)
    done = export_onnx(model, out, camera=camera, dataset=dataset, images=found)
    typer.echo(f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB; largest difference from "
               f"torch {done.difference:.1e} of a feature's length, over {done.images} images")
    return 0


if __name__ == "__main__":
    main()
