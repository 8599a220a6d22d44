"""The image encoder of trained weights as an ONNX file, checked against torch.

    python launch/export.py --weights runs/market1501/0a1b2c3d4e5f --out model.onnx
    python launch/export.py --weights ViT-B-16_60.pth --out model.onnx --images photos

Input "images": normalised float32 [B, 3, H, W], any B; output "features": [B, D], not normalised.
How images are prepared stands in the file's metadata. Needs the extra: pip install '.[export]'
"""

from pathlib import Path
from typing import Annotated

import typer

from harness.base.errors import UserError
from harness.base.files import check_writable
from launch.cli import command

MAX_IMAGES = 24
"""Real images that are compared; more would tell nothing new."""


@command(__doc__)
def main(
    weights: Annotated[
        Path, typer.Option(help="Weights file, folder of a finished run, or published .pth.")
    ],
    out: Annotated[Path, typer.Option(help="The ONNX file to write.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images to compare on, besides random ones.")
    ] = None,
    camera: Annotated[
        int | None,
        typer.Option(help="Build in the side information of this camera, as its dataset numbers it "
                          "(Market-1501's c1: 1). [default: none]"),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="With --camera: whose camera, for a model trained on several datasets."),
    ] = None,
    height: Annotated[
        int | None, typer.Option(help="Input height of a published file that does not tell it.")
    ] = None,
    width: Annotated[
        int | None, typer.Option(help="Input width of a published file that does not tell it.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option(help="Patch stride of a published file that does not tell it.")
    ] = None,
) -> int:
    """Export, compare, and print the largest difference."""
    if dataset is not None and camera is None:
        raise UserError("--dataset without --camera has no effect; add --camera")
    check_writable(out)  # before the work
    from svll.data.image_folder import find_images

    found = find_images(images)[:MAX_IMAGES] if images else []
    from svll.models.weights.load import load_model
    from svll.models.weights.onnx_export import export_onnx  # torch: not for --help

    model = load_model(weights, height=height, width=width, stride=stride)
    done = export_onnx(model, out, camera=camera, dataset=dataset, images=found)
    typer.echo(
        f"{done.path}: {done.path.stat().st_size / 1e6:.1f} MB; largest difference from torch "
        f"{done.difference:.1e} of a feature's length, over {done.images} images"
    )
    return 0


if __name__ == "__main__":
    main()
