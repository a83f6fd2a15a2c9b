"""Cohorts of LoRA adapters that share a start, and their products written out, in float64 and by numpy."""

import json

import numpy as np
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Update
from fedpeft.strategies.lora import modules

SHAPES = {"m.0": (24, 17), "m.1": (13, 30)}


def space(rank=4, shapes=SHAPES, head=True, **config):
    slots = [Slot(f"{n}.lora_A.weight", (rank, width), "lora_A") for n, (_, width) in shapes.items()]
    slots += [Slot(f"{n}.lora_B.weight", (out, rank), "lora_B") for n, (out, _) in shapes.items()]
    slots += [Slot("m.score.bias", (5,), "head"), Slot("m.score.weight", (5, 6), "head")] if head else []
    return Space(tuple(slots), json.dumps({"lora_alpha": 8, "peft_type": "LORA", "r": rank} | config))


def cohort(clients, het=1.0, rotated=False, where=None, seed=0):
    """A context whose start is random, and clients that stray from it by het; rotated: each in a basis of its own."""
    where = where or space()
    draw = np.random.default_rng(seed)
    start = draw.standard_normal(where.numel)
    found = []
    for _ in range(clients):
        adapter = torch.from_numpy(start + het * draw.standard_normal(where.numel))
        for module in modules(where) if rotated else ():
            turn = torch.from_numpy(np.linalg.qr(draw.standard_normal((module.rank, module.rank)))[0])
            b, a = where.view(adapter, module.b), where.view(adapter, module.a)
            b.copy_(b @ turn.T)
            a.copy_(turn @ a)
        found.append(Update((adapter - torch.from_numpy(start)).float(), float(draw.integers(1, 9))))
    return Context(where, torch.from_numpy(start).float()), found


def dense(ctx, delta):
    """scaling B A of every layer of start + delta."""
    adapter = ctx.adapter(Update(delta)).double()
    return [
        m.scaling * (ctx.space.view(adapter, m.b).numpy() @ ctx.space.view(adapter, m.a).numpy())
        for m in modules(ctx.space)
    ]


def mean_product(ctx, updates):
    """The weighted mean of the clients' products of every layer."""
    weights = np.array([u.weight for u in updates])
    products = zip(*(dense(ctx, u.delta) for u in updates), strict=True)
    return [np.average(layer, axis=0, weights=weights) for layer in products]


def distance(found, wanted):
    """||found - wanted||_F / ||wanted||_F over all layers."""
    missed = sum(np.linalg.norm(a - b) ** 2 for a, b in zip(found, wanted, strict=True))
    return np.sqrt(missed / sum(np.linalg.norm(b) ** 2 for b in wanted))


def cut(matrix, rank):
    """The best approximation of a rank, by a dense SVD."""
    u, s, v = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]
