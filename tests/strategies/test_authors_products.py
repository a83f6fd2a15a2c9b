"""Rules on LoRA products beside their authors' own code, on layers that are not square."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fedpeft.strategies import Context, FlexLoRA, IsoC, KnOTS, Update, best_mean, iso_cts, stacked, with_residual
from fedpeft.strategies.factors import Factors
from tests.strategies.authors import REFERENCES, agree, theirs
from tests.strategies.lora_cohorts import cut, dense, space

pytestmark = REFERENCES
SHAPES = {"m.0": (80, 48), "m.1": (13, 30)}


def adapters(clients, where):
    """Whole adapters, of equal weight, with no start."""
    draw = np.random.default_rng(clients)
    return [Update(torch.from_numpy(draw.standard_normal(where.numel)).float()) for _ in range(clients)]


def factors(ranks, alpha=16):
    """Of one layer."""
    draw = np.random.default_rng(len(ranks))
    pairs = [[torch.from_numpy(draw.standard_normal(shape)) for shape in ((80, r), (r, 48))] for r in ranks]
    return [Factors(b, a, alpha / r) for (b, a), r in zip(pairs, ranks, strict=True)]


def product(one):
    return one.scaling * (one.b @ one.a)


class Model(torch.nn.Module):
    """Linear layers of these weights, or of zeros."""

    def __init__(self, weights):
        super().__init__()
        for name, weight in zip(("first", "second"), weights, strict=True):
            layer = torch.nn.Linear(*reversed(weight.shape), bias=False)
            layer.weight.data = torch.from_numpy(weight).float()
            self.add_module(name, layer)

    def get_ft_parameters(self):
        return self.state_dict()


@pytest.mark.parametrize("percent", [10, 30])
@pytest.mark.parametrize("clients", [2, 3])
def test_knots(clients, percent):
    """Their merge, with the whole model around it, cut to our rank; they keep one value more than the share says."""
    masks = theirs("gstoica27__KnOTS/masking_ops.py", *MASKS)
    around = {"get_mask_fn": lambda _: masks.ties_masking, "masked_merge": masks.masked_merge}
    merger = theirs("gstoica27__KnOTS/task_merger.py", "VectorOps", "TaskMerger", "SVDMerger", **around).SVDMerger
    where = space(4, SHAPES, head=False)
    updates, ctx = adapters(clients, where), Context(where)
    products = [dense(ctx, u.delta) for u in updates]
    models = [Model(layers) for layers in products]
    found = merger(models, Model([0 * layer for layer in products[0]]), lambda model: model, "cpu")
    config = {"merge_method": "ties", "merging_type": "mean", "topK": percent}
    found.transform(config)
    expected = [cut(w.double().numpy(), 4) for w in found.merge(config).state_dict().values()]
    values = 4 * clients * sum(width for _, width in SHAPES.values())
    ours = dense(ctx, KnOTS((int(values * percent / 100) + 0.5) / values).merge(updates, ctx))
    for mine, reference in zip(ours, expected, strict=True):
        agree("KnOTS", mine, reference, 1e-5)


MASKS = (
    *("topk_values_mask", "resolve_zero_signs", "resolve_sign", "ties_masking"),
    *("chunked_disjoint_mean", "masked_merge"),
)
ISO = "tanganke__fusion_bench/fusion_bench/method/isotropic_merging/iso_utils.py"


@pytest.mark.parametrize("clients", [2, 5])
def test_iso_c_where_products_have_full_rank(clients):
    """Of the mean, where they take the sum, and a factor that they choose on validation data."""
    where = space(4, {"m.0": (9, 4), "m.1": (4, 13)}, head=False)
    updates, ctx = adapters(clients, where), Context(where)
    vectors = [dict(enumerate(map(torch.from_numpy, dense(ctx, u.delta)))) for u in updates]
    expected = theirs(ISO, "iso_c", timeit_context=lambda _: nullcontext()).iso_c(vectors, "cpu")
    ours = dense(ctx, IsoC(FlexLoRA()).merge(updates, ctx))
    for mine, reference in zip(ours, expected.values(), strict=True):
        agree("Iso-C", mine * clients, reference, 1e-5)


def test_iso_c_where_they_do_not():
    """They share the singular values out to all directions; of those, ours has the ones that are there."""
    where = space(4, SHAPES, head=False)
    updates, ctx = adapters(1, where), Context(where)
    layers = dense(ctx, updates[0].delta)
    vectors = [dict(enumerate(map(torch.from_numpy, layers)))]
    expected = theirs(ISO, "iso_c", timeit_context=lambda _: nullcontext()).iso_c(vectors, "cpu")
    ours = dense(ctx, IsoC(FlexLoRA()).merge(updates, ctx))
    for mine, layer, reference in zip(ours, layers, expected.values(), strict=True):
        u = np.linalg.svd(layer)[0][:, :4]
        agree("Iso-C", mine * 4 / min(layer.shape), u @ u.T @ reference.numpy(), 1e-5)


@pytest.mark.parametrize(("clients", "rank", "shape"), [(2, 6, (14, 10)), (3, 4, (80, 12)), (2, 8, (9, 31))])
def test_iso_cts(clients, rank, shape):
    """Where the sum has as many directions as the layer."""
    draw, (out, width) = np.random.default_rng(clients), shape
    shapes = [((out, rank), (rank, width))] * clients
    terms = [Factors(*(torch.from_numpy(draw.standard_normal(size)) for size in pair)) for pair in shapes]
    expected = theirs(ISO, "iso_cts").iso_cts([{"layer": product(term)} for term in terms], 0.8, "cpu")
    agree("Iso-CTS", product(iso_cts(terms, min(shape), 0.8)), expected["layer"])


def saved(terms, folder, a, b):
    """Each client's tensors where an aggregation looks for them."""
    for i, term in enumerate(terms):
        file = folder(i) / "pytorch_model.bin"
        file.parent.mkdir(parents=True)
        torch.save({a: term.a, b: term.b}, file)


def test_flora(tmp_path):
    terms, weights = factors([4, 3, 6]), [5.0, 1.0, 2.0]
    saved(terms, lambda i: tmp_path / "0" / f"local_output_{i}", "lora_A", "lora_B")
    aggregate = theirs("ATP-1010__FederatedLLM/fed_utils/model_aggregation.py", "FedAvg").FedAvg
    aggregate(None, range(3), tmp_path, weights, 0, True, None, True, [4, 3, 6], False, False)
    expected = torch.load(tmp_path / "0" / "adapter_model.bin")
    ours = stacked([Factors(term.b, term.a) for term in terms], weights)
    agree("FLoRA", ours.a, expected["lora_A"])
    agree("FLoRA", ours.b, expected["lora_B"])


@pytest.mark.parametrize("rank", [2, 4, 8])
def test_flexlora(rank, tmp_path):
    """Their mean, and what of it a client with this rank gets."""
    terms, weights = factors([8, 4, 2]), [5.0, 1.0, 2.0]
    saved(terms, lambda i: tmp_path / str(i) / "local_output_epoch_0", "q.lora_A.local.weight", "q.lora_B.local.weight")
    root = "alibaba__FederatedScope/fed_utils"
    mean = theirs(f"{root}/model_aggregation.py", "FlexLoRA").FlexLoRA(range(3), tmp_path, weights, 0)
    split = theirs(f"{root}/adaptive_peft.py", "distribute_weight_fast").distribute_weight_fast
    (a, b) = split(mean, {"alpha": 16, "Client 0": {"q": rank}}).values()
    ours = best_mean(terms, weights, rank, 16 / rank)
    agree("FlexLoRA", product(ours), 16 / rank * (b @ a))


class Layer(torch.nn.Module):
    """A LoRA layer as PEFT's, on a base layer as GPT-2's, whose weight lies transposed."""

    def __init__(self, factors):
        super().__init__()
        for name, weight in (("lora_A", factors.a), ("lora_B", factors.b)):
            linear = torch.nn.Linear(*reversed(weight.shape), bias=False)
            linear.weight.data = weight.clone()
            self.add_module(name, torch.nn.ModuleDict({"default": linear}))
        self.base_layer = torch.nn.Linear(80, 48, bias=False)
        self.base_layer.weight.data = torch.zeros(48, 80).double()


@pytest.mark.parametrize("clients", [2, 5])
def test_fedex(clients):
    """With all of the residual, which they add to the base layer."""
    terms = factors([4] * clients)
    aggregate = theirs("yangguohao__fedex-lora/fed_agg.py", "aggregate_models_ours").aggregate_models_ours
    models = [torch.nn.ModuleDict({"m": Layer(term)}) for term in terms]
    found = aggregate(models[0], models, SimpleNamespace(rslora=False, lora_alpha=16, lora_r=4))["m"]
    ours = with_residual(terms, [1.0] * clients, 4 * (clients - 1))
    agree("FedEx-LoRA", ours.a[:4], found.lora_A["default"].weight.detach())
    agree("FedEx-LoRA", ours.b[:, :4], found.lora_B["default"].weight.detach())
    residual = 4 * (ours.b[:, 4:] @ ours.a[4:])
    agree("FedEx-LoRA", residual, found.base_layer.weight.detach().T)
