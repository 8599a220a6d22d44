"""A run as the released code carries one out: `python -m tests.benchmarks.released_trial WORDS`.

The words are those of `launch/train.py`. Data by PIL and torchvision in a DataLoader, both stages'
steps and the extraction of features as in `tests.benchmarks.released`, nothing kept for other runs;
sampling, losses, ranking and the loop are ours. Features in fp32.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from harness.training import loop, ranks
from launch import train
from svll import scoring, stage1, stage2
from svll.data.splits import Part
from svll.inputs import Inputs
from svll.models.reid import ReIDModel
from tests.benchmarks import released
from tests.benchmarks.data import THREADS, Views
from tests.benchmarks.features import Images


def use_the_released_way() -> None:
    """Put the released code's steps in the place of ours."""
    ours1, ours2 = stage1.build, stage2.build

    def build1(inputs: Inputs, objective: stage1.PromptObjective) -> loop.Stage:
        # what our stage 1 tells of its prompts it does not measure
        return replace(
            ours1(inputs, objective), objective=_Prompts(objective), validate=lambda _: {}
        )

    def build2(inputs: Inputs, objective: stage2.ImageObjective, loader: Any) -> loop.Stage:
        config = inputs.config.stage2
        return replace(
            ours2(inputs, objective, loader), objective=_Images(objective),
            optimizer=released.optimizer(objective, config.lr, config.weight_decay),
        )

    def tested(inputs: Inputs, model: ReIDModel, part: Part) -> dict[str, Any]:
        return scoring.rank(part, *encode(inputs, model, part)).as_json() | {
            "dataset": part.name, "protocol": part.protocol
        }

    stage1.build, stage2.build, stage2.open_loader = build1, build2, _Loader  # type: ignore[assignment]
    Inputs.frozen = lambda inputs: _Frozen(inputs)  # type: ignore[assignment,method-assign,return-value]
    scoring.encode, scoring._test = encode, tested
    scoring.initial_metrics = lambda inputs: {part.name: {} for part in inputs.splits.tests}


@torch.no_grad()
def encode(inputs: Inputs, model: ReIDModel, part: Part) -> tuple[Tensor, Tensor]:
    """Return the features of query and gallery; an image of both is encoded twice."""
    found = []
    for records in (part.query, part.gallery):
        camera, view = (
            torch.from_numpy(each).to(ranks.device())
            for each in inputs.splits.places(records, part.dataset)
        )
        side = None if model.side is None else model.side(camera, view)
        _, f12, fp = encoded(inputs, records.paths, side)
        found.append(torch.cat([f12, fp], dim=1))
    return found[0], found[1]


@torch.no_grad()
def encoded(inputs: Inputs, paths: Sequence[str], side: Tensor | None) -> tuple[Tensor, ...]:
    """Return f11, f12 and fp of images; side: see `released.encode_image`."""
    data, batch = inputs.config.data, inputs.config.evaluation.batch
    images = DataLoader(
        Images(paths, data.height, data.width), batch_size=batch, num_workers=THREADS
    )
    found = [
        released.encode_image(
            inputs.clip.image.visual, each.to(ranks.device()),
            None if side is None else side[i * batch : (i + 1) * batch],
        )
        for i, each in enumerate(images)
    ]
    return tuple(torch.cat(features) for features in zip(*found, strict=True))


class _Frozen:
    """Features of the training images by the encoder as it is, made anew by each run."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs

    def of(self, paths: Sequence[str]) -> Tensor | None:
        if paths != self.inputs.splits.train.paths:
            return None
        return encoded(self.inputs, paths, None)[2]


class _Prompts(nn.Module):
    def __init__(self, objective: stage1.PromptObjective) -> None:
        super().__init__()
        self.objective = objective
        self.standard = released.ReleasedPrompts(
            objective.prompts, objective.text, objective.head, objective.config
        )

    def forward(self, batch: stage1.PromptBatch) -> dict[str, Tensor]:
        labels = batch.identities.to(batch.features.device)
        return self.standard.losses(batch.features, labels, batch.seed)


class _Images(nn.Module):
    def __init__(self, objective: stage2.ImageObjective) -> None:
        super().__init__()
        self.objective = objective

    def forward(self, batch: stage2.ImageBatch) -> dict[str, Tensor]:
        return released.image_losses(self.objective, batch)


class _Loader:
    """Batches of views from a DataLoader."""

    def __init__(self, inputs: Inputs) -> None:
        data, config = inputs.config.data, inputs.config.stage2
        found = config.flip, config.erase, config.erase_area, config.vss_erase_area
        assert found == (0.5, 0.5, (0.02, 1 / 3), (0.33, 1 / 3)), "Views does nothing else"
        assert data.mean == data.std == (0.5, 0.5, 0.5), "likewise"
        self.views = Views(
            inputs.splits.train.paths, data.height, data.width, pad=config.pad,
            others=bool(config.vss_weight),
        )

    def epoch(self, rows: Sequence[Any], _: Any, *, epoch: int) -> Iterator[dict[str, Tensor]]:
        loader = DataLoader(self.views, batch_sampler=rows, num_workers=THREADS)
        for index, views in zip(rows, loader, strict=True):
            named = zip(("main", *stage2.VSS_VIEWS), views, strict=False)
            batch = {"rows": torch.from_numpy(index), **dict(named)}
            yield {name: each.to(ranks.device()) for name, each in batch.items()}

    def close(self) -> None:
        """As our loader's."""


if __name__ == "__main__":
    use_the_released_way()
    train.main()
