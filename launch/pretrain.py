"""Train the tiny CLIP that this project ships.

    python launch/pretrain.py

Draws persons that no ReID split holds, trains on their captions, and writes weights, vocabulary and
a card with the held-out retrieval score to svll/models. Eleven minutes on 2 cores.
"""

import json
from typing import Annotated

import typer

from harness.base.machine import usable_cores
from launch.cli import command


@command(__doc__)
def main(
    seed: Annotated[int, typer.Option(help="Seed of drawn persons, order and weights.")] = 1234,
) -> int:
    """Pre-train, then print the card."""
    from svll.models.weights.pretrain_tiny import Pretraining, pretrain  # torch: not for --help

    card = pretrain(Pretraining(seed=seed), workers=len(usable_cores()))
    typer.echo(json.dumps(card, indent=2))
    return 0


if __name__ == "__main__":
    main()
