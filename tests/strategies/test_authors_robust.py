"""Rules against hostile sites beside known code of them, on layers that are not square."""

import functools
import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.spatial import distance

from fedpeft.strategies import Bulyan, CentredClip, Context, FLTrust, GeometricMedian, Krum, Update, frank_wolfe
from tests.strategies.authors import REFERENCES, SPACE, Models, agree, cohort, named, rows, theirs

pytestmark = REFERENCES
CONTEXT = Context(SPACE)


def attacked(clients, hostile, weights=None):
    """A cohort that agrees somewhat, and hostile ones far off on one side."""
    updates, (common,) = cohort(clients, weights), rows(cohort(1))
    shifts = [common * (1 if i >= hostile else -9) for i in range(clients)]
    return [Update((u.delta + s).float(), u.weight) for u, s in zip(updates, shifts, strict=True)]


def byzfl(name):
    used = theirs("LPD-EPFL__byzfl/byzfl/utils/misc.py", "check_vectors_type", "distance_tool", distance=distance)
    return getattr(theirs("LPD-EPFL__byzfl/byzfl/aggregators/aggregators.py", name, **vars(used)), name)


@pytest.mark.parametrize(("clients", "hostile"), [(7, 1), (12, 3), (20, 8)])
def test_krum(clients, hostile):
    """By one more neighbour, as their f + 1 has: they sum n - f - 1 distances, the paper n - f - 2."""
    updates = cohort(clients)
    x = rows(updates).numpy()
    agree("Krum", Krum(hostile).merge(updates, CONTEXT), byzfl("Krum")(hostile + 1)(x))
    keep = clients - hostile - 1
    agree("Multi-Krum", Krum(hostile, keep).merge(updates, CONTEXT), byzfl("MultiKrum")(hostile + 1)(x))


@pytest.mark.parametrize(("radius", "iterations"), [(1.0, 1), (30.0, 1), (30.0, 7)])
def test_centred_clipping(radius, iterations):
    updates = attacked(9, 2)
    expected = byzfl("CenteredClipping")(None, iterations, radius)(rows(updates).numpy())
    agree("Centred clipping", CentredClip(radius, iterations).merge(updates, CONTEXT), expected)


def rfa(updates, iterations):
    """The authors' median after so many iterations."""
    server = theirs("krishnap25__RFA/models/model.py", "ServerModel").ServerModel
    points, weights = [[u.delta.double().numpy()] for u in updates], [u.weight for u in updates]
    return server.geometric_median_update(points, weights, iterations, eps=1e-9, ftol=0.0)[0][0]


def test_the_geometric_median_is_rfas():
    """Both run to the end, by sites' weights."""
    updates = attacked(9, 2, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0])
    agree("Geometric median", GeometricMedian(300).merge(updates, CONTEXT), rfa(updates, 300), 1e-5)


def test_the_geometric_median_is_byzfls():
    updates = attacked(9, 2)
    expected = byzfl("GeometricMedian")(1e-9, 300)(rows(updates).numpy())
    agree("Geometric median", GeometricMedian(300).merge(updates, CONTEXT), expected, 1e-5)


@pytest.mark.parametrize("far", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("hostile", [0, 1, 4])
def test_the_geometric_median_is_as_near_as_rfas_after_as_many_passes(hostile, far):
    updates = attacked(9, hostile)
    updates = [Update(u.delta * (far if i < hostile else 1.0)) for i, u in enumerate(updates)]
    best = torch.from_numpy(rfa(updates, 2000))
    ours = GeometricMedian(8).merge(updates, CONTEXT).double()
    reference = torch.from_numpy(rfa(updates, 8))
    off, theirs_off = (float((x - best).norm() / best.norm()) for x in (ours, reference))
    print(f"Geometric median after 9 passes, {hostile} of 9 at {far:g}: {off:.1e}, RFA's {theirs_off:.1e}")
    assert off <= 1.01 * theirs_off + 1e-6


def test_fltrust():
    updates, root = attacked(9, 3), cohort(1)[0].delta
    client = SimpleNamespace(update=root.double().numpy(), load_global_model=id, local_training=int)
    client.fetch_updates = lambda benign_flag: None
    around = {"prepare_grad_updates": lambda _, x, __: x, "wrapup_aggregated_grads": lambda x, *_, **__: x}
    around["cosine_similarity"] = lambda x, y: 1 - distance.cdist(x, y, "cosine")
    aggregate = theirs("vio1etus__FLPoison/aggregators/fltrust.py", "aggregate", **around).aggregate
    server = SimpleNamespace(args=SimpleNamespace(algorithm="FedSGD"), server_client=client)
    expected = aggregate(server, rows(updates).numpy(), last_global_model=None, global_weights_vec=None)
    agree("FLTrust", FLTrust().merge(updates, Context(SPACE, told={"root": root})), expected)


@pytest.mark.parametrize(("clients", "hostile"), [(15, 3), (20, 4)])
def test_bulyan(clients, hostile):
    """Flower's, where it looks at two neighbours at least: with one, the nearest two tie, and it takes the first."""
    known = pytest.importorskip("flwr.server.strategy.aggregate")
    updates = attacked(clients, hostile)
    results = [([tensor.numpy() for tensor in one.values()], 1) for one in named(updates)]
    expected = known.aggregate_bulyan(results, hostile, known.aggregate_krum, to_keep=0)
    agree("Bulyan", Bulyan(hostile).merge(updates, CONTEXT), np.concatenate([x.ravel() for x in expected]))


FUSION_BENCH = "tanganke__fusion_bench/fusion_bench"
FRANK_WOLFE = f"{FUSION_BENCH}/method/fw_merging/fw_hard.py"


class Stated(SimpleNamespace):
    """Tensors as a model gives them."""

    def __init__(self, tensors):
        super().__init__(state_dict=lambda: tensors, to=lambda _: self)


@pytest.mark.parametrize("kind", ["task", "layer"])
def test_frank_wolfe_chooses_as_the_authors_do(kind):
    """Among updates of one length in each slot around zero, since they take cosines."""
    method = theirs(FRANK_WOLFE, "frank_wolfe_selection")
    names = [slot.name for slot in SPACE.slots]
    unit = [{name: tensor / tensor.norm() for name, tensor in one.items()} for one in named(cohort(9))]
    slope, unit = unit[0], unit[1:] + [{name: -tensor for name, tensor in one.items()} for one in unit[1:]]
    updates = [Update(SPACE.flatten(one)) for one in unit]
    before = {name: [] for name in names} if kind == "layer" else []
    _, chosen, *_ = method.frank_wolfe_selection(None, slope, dict(enumerate(map(Stated, unit))), before, kind)
    choose = "slot" if kind == "layer" else "update"
    found = frank_wolfe(updates, CONTEXT, lambda _: SPACE.flatten(slope), iterations=1, choose=choose)
    expected = [chosen[name] for name in names] if kind == "layer" else [chosen] * len(names)
    assert found.shares.argmax(0).tolist() == expected
    assert found.shares.max(0).values.tolist() == [1.0] * len(names)


def their_frank_wolfe(updates, target, iterations, kind):
    """Their whole loop from the mean, with steps of 2 / (t + 2), on half the squared distance to the target."""
    used = "state_dict_sub", "state_dict_add", "state_dict_mul"
    unchecked = {"_validate_state_dict_same_keys": id}
    around = vars(theirs(f"{FUSION_BENCH}/utils/state_dict_arithmetic.py", *used, **unchecked))
    merge = theirs(FRANK_WOLFE, "task_arithmetic_merge", **around).task_arithmetic_merge
    names = "CLIPClassificationMixin", "ModelFusionAlgorithm", "SimpleProfilerMixin"
    around = {name: type(name, (), {}) for name in names}
    around |= {"functools": functools, "log": logging.getLogger(__name__)}
    loop = object.__new__(theirs(FRANK_WOLFE, "FrankWolfeHardAlgorithm", **around).FrankWolfeHardAlgorithm)
    loop.config, loop.is_debug_mode, loop.init_weight, loop.max_num_models = None, False, "", len(updates)
    loop.log_hyperparams, loop.setup_zero_shot_classification_head = id, int
    loop.merge_fn, loop.scaling_factor, loop.step_size = merge, 1 / len(updates), float(len(updates))
    loop.granularity, loop.max_iters = kind, iterations
    goal = dict(zip("abc", SPACE.tensors(target).values(), strict=True))
    loop.frank_wolfe_iteration = lambda model: {k: x.detach() - goal[k[0]] for k, x in model.state_dict().items()}
    with torch.enable_grad():
        found = loop.run(Models(updates))
    return torch.cat([found[letter].weight.detach().flatten() for letter in "abc"])


@pytest.mark.parametrize("kind", ["task", "layer"])
@pytest.mark.parametrize("iterations", [5, 10, 20, 100])
@pytest.mark.parametrize("hostile", [0, 1])
def test_frank_wolfe_gets_as_near_as_the_authors_loop(kind, iterations, hostile, monkeypatch):
    """To the best mixture, which has nothing of a far update, in the mean over targets."""
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    updates, off = attacked(6, hostile), []
    for target in np.random.default_rng(0).dirichlet(np.ones(6 - hostile), 8) @ rows(updates)[hostile:].numpy():
        best = torch.from_numpy(target)
        reference = their_frank_wolfe(updates, best, iterations, kind)
        choose = "slot" if kind == "layer" else "update"
        ours = frank_wolfe(updates, CONTEXT, lambda x, best=best: x - best, iterations=iterations, choose=choose)
        off.append([float((x - best).norm() / best.norm()) for x in (ours.delta, reference)])
    ours, reference = np.mean(off, axis=0)
    print(f"Frank-Wolfe after {iterations} iterations by {kind}, {hostile} far: {ours:.3f}, theirs {reference:.3f}")
    assert ours <= 1.25 * reference
