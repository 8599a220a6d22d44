"""Pre-training of the shipped tiny CLIP: images of the synthetic world against their captions.

Contrastive, as in CLIP (Radford et al. 2021, section 2.3), on identities that no ReID split holds.
"""

import logging
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from harness.base.files import write_json
from harness.base.rng import generator
from svll.models.clip import HERE, TINY, TINY_MERGES, TINY_WEIGHTS, tokenizer_for
from svll.models.weights.run_weights import save_tensors
from svll.world.tiny_vocabulary import learn_merges, write_merges
from svll.world.world import World, cameras_of, caption, render, vocabulary

log = logging.getLogger(__name__)
FIRST_IDENTITY = 1_000_000
"""The first pre-training identity; those of the ReID worlds start at 1."""
MAX_TOKENS = 40
"""Captions are cut to this length."""


@dataclass(frozen=True)
class Pretraining:
    """Everything that determines the weights."""

    seed: int = 1234
    identities: int = 1000
    """Half are train ids of a world, half test ids; all are used."""
    held_out: int = 200
    """Further identities, one image each, to measure retrieval on."""
    epochs: int = 6
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.1
    warmup: float = 0.05
    """Share of the steps in which the learning rate rises."""
    height: int = 64
    width: int = 32


class Pairs(NamedTuple):
    """Images uint8 [n, H, W, 3] and their n captions."""

    images: NDArray[np.uint8]
    captions: list[str]


def pretrain(plan: Pretraining, *, workers: int) -> dict[str, Any]:
    """Train the tiny CLIP, write vocabulary, weights and a card beside them; returns the card."""
    import open_clip

    started = time.time()
    torch.manual_seed(plan.seed)
    texts = (*vocabulary(), "a photo of a person vehicle")
    write_merges(TINY_MERGES, learn_merges({w for text in texts for w in text.lower().split()}))
    tokenizer = tokenizer_for(TINY)
    train = draw(plan, FIRST_IDENTITY, plan.identities, workers)
    held_out = draw(plan, 2 * FIRST_IDENTITY, plan.held_out, workers, one_each=True)
    log.info("%d images drawn in %.0f s", len(train.images), time.time() - started)
    open_clip.add_model_config(HERE / "svll-tiny.json")
    model = open_clip.create_model(TINY)
    train_model(model, train, tokenizer, plan)
    score = score_and_scale(model, held_out, tokenizer)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    save_tensors(TINY_WEIGHTS, weights, {"model": TINY, "quick_gelu": "false"})
    card = {
        "command": "python launch/pretrain.py", "plan": asdict(plan), "images": len(train.images),
        "held_out": score, "minutes": round((time.time() - started) / 60, 1),
    }
    write_json(TINY_WEIGHTS.with_name("svll-tiny.card.json"), card)
    return card


def draw(
    plan: Pretraining, first: int, identities: int, workers: int, *, one_each: bool = False
) -> Pairs:
    """Draw `identities` persons numbered from `first`: two images per camera, or one in all."""
    world = World(identities // 2, identities // 2, seed=plan.seed, first_identity=first)
    shots = []
    for identity in sorted([*world.train_ids, *world.test_ids]):
        cameras = cameras_of(world, identity)
        shots += [(identity, cameras[0], 0)] if one_each else [
            (identity, camera, shot) for camera in cameras for shot in range(2)
        ]
    work = partial(_draw_one, world, (plan.height, plan.width))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        images, captions = zip(*pool.map(work, shots, chunksize=256), strict=True)
    return Pairs(np.stack(images), list(captions))


def _draw_one(
    world: World, size: tuple[int, int], shot: tuple[int, int, int]
) -> tuple[NDArray[np.uint8], str]:
    return render(world, *shot, size=size), caption(world, *shot)


def train_model(model: nn.Module, pairs: Pairs, tokenizer: Any, plan: Pretraining) -> None:
    """Train `model` in place by the symmetric contrastive loss; AdamW, warm-up and cosine."""
    tokens = tokenizer(pairs.captions)[:, :MAX_TOKENS]
    count, step = len(tokens) // plan.batch, 0
    decay = [p for p in model.parameters() if p.ndim >= 2]
    plain = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": plan.weight_decay},
         {"params": plain, "weight_decay": 0.0}],
        lr=plan.lr, betas=(0.9, 0.98), fused=True,
    )
    for epoch in range(1, plan.epochs + 1):
        order = generator(plan.seed, epoch).permutation(len(tokens))
        started, total = time.time(), 0.0
        for start in range(0, count * plan.batch, plan.batch):
            rows = order[start : start + plan.batch]
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = plan.lr * _schedule(step / (plan.epochs * count), plan.warmup)
            images = augment(pairs.images[rows], generator(plan.seed, epoch, start, 1))
            loss = contrastive_loss(model, images, tokens[torch.from_numpy(rows)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                model.logit_scale.clamp_(max=np.log(100))  # type: ignore[operator]
            total += loss.item()
        log.info("epoch %d loss %.3f, %.0f s", epoch, total / count, time.time() - started)


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + np.cos(np.pi * (progress - warmup) / (1 - warmup)))


def augment(images: NDArray[np.uint8], rng: np.random.Generator) -> Tensor:
    """Shift by up to 4 pixels, then normalise; returns [B, 3, H, W]. No flip: bags have a side."""
    pad = 4
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="edge")
    _, height, width, _ = images.shape
    shifts = rng.integers(0, 2 * pad + 1, size=(len(images), 2))
    moved = np.stack([
        image[y : y + height, x : x + width]
        for image, (y, x) in zip(padded, shifts, strict=True)
    ])
    return normalise(moved)


def normalise(images: NDArray[np.uint8]) -> Tensor:
    """Turn uint8 [B, H, W, 3] into float [B, 3, H, W], normalised by mean and std 0.5."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def contrastive_loss(model: Any, images: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss of images [B, 3, H, W] and captions [B, L]; equal captions share the target."""
    image = F.normalize(model.encode_image(images), dim=1)
    text = F.normalize(encode_text(model, tokens), dim=1)
    logits = model.logit_scale.exp() * image @ text.T
    same = (tokens[:, None] == tokens[None]).all(dim=2).float()
    target = same / same.sum(dim=1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def encode_text(model: Any, tokens: Tensor) -> Tensor:
    """Encode captions [B, L] cut to L tokens (open_clip's method needs all 77)."""
    length = tokens.shape[1]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    end = tokens.argmax(dim=1)
    return model.ln_final(x)[torch.arange(len(x)), end] @ model.text_projection


@torch.no_grad()
def score_and_scale(model: Any, pairs: Pairs, tokenizer: Any) -> dict[str, float]:
    """Return the share of held-out images whose caption is ranked first, and among the top five.

    Then scale both projections so that the dot product of two features is the trained logit:
    training normalises features, which leaves their length arbitrary; ReID's losses use features
    unnormalised at temperature 1, and would see logits ten times too large.
    """
    image = model.encode_image(normalise(pairs.images))
    text = encode_text(model, tokenizer(pairs.captions)[:, :MAX_TOKENS])
    length = (model.logit_scale.exp() ** 0.5).item()
    model.visual.proj.mul_(length / image.norm(dim=1).mean())
    model.text_projection.mul_(length / text.norm(dim=1).mean())
    scores = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    rank = (scores > scores.diagonal()[:, None]).sum(dim=1)
    return {
        "identities": len(rank),
        "image_to_text_rank1": round((rank < 1).double().mean().item(), 4),
        "image_to_text_rank5": round((rank < 5).double().mean().item(), 4),
        "chance_rank1": round(1 / len(rank), 4),
    }
