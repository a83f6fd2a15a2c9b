"""Rules on deltas beside their authors' own code, on layers that are not square."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, cg

from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.strategies import OPCM, PCB, TIES, Consensus, Context, Fisher, MaTS, RankVote, RegMean, Update
from tests.strategies.authors import REFERENCES, SPACE, Models, agree, cohort, named, rows, theirs
from tests.strategies.examples import statistics

pytestmark = REFERENCES
CONTEXT = Context(SPACE)
A, B, HEAD = (slot.name for slot in SPACE.slots)


def measured(clients, weights=None):
    """A cohort with the statistics that a strategy may need."""
    draw = np.random.default_rng(1)
    return [Update(u.delta, u.weight, statistics(draw, SPACE)) for u in cohort(clients, weights)]


def fishers(updates):
    return [SPACE.tensors(u.statistics["fisher"].double()) for u in updates]


def grams(updates):
    """Of B's inputs."""
    return [u.statistics["gram"].double().view(4, 4) for u in updates]


@pytest.mark.parametrize(("clients", "percent"), [(3, 20), (8, 50), (20, 5)])
def test_ties(clients, percent):
    """They keep one value more than the share, rounded down, says."""
    path = "prateeky2806__ties-merging/src/ties_minimal.ipynb"
    names = "topk_values_mask", "resolve_zero_signs", "resolve_sign", "disjoint_merge", "ties_merging"
    updates = cohort(clients)
    expected = theirs(path, *names).ties_merging(rows(updates), percent, "dis-mean")
    density = (int(SPACE.numel * percent / 100) + 1) / SPACE.numel
    agree("TIES", TIES(density, "global", weights="reference").merge(updates, CONTEXT), expected)


@pytest.mark.parametrize(("clients", "density"), [(2, 0.1), (8, 0.05), (20, 0.5)])
def test_pcb(clients, density):
    module = theirs("duguodong7__pcb-merging/pcb-merging.py", "normalize", "clamp", "act", "PCB_merge")
    updates = cohort(clients)
    agree("PCB", PCB(density).merge(updates, CONTEXT), module.PCB_merge(rows(updates), density)[0])


@pytest.mark.parametrize(("clients", "threshold", "voters"), [(3, 0.4, 2), (8, 0.2, 1), (8, 0.6, 4)])
def test_consensus(clients, threshold, voters):
    """With one lambda for all and the mean for tau, where they choose both on validation data."""
    path, masks = "nik-dim__tall_masks/src/utils/tallmask_utils.py", {}
    names = "log_wandb_mask_sparsity", "generate_task_masks", "construct_consensus_mask"
    around = {"wandb": SimpleNamespace(log=lambda _: None), "ALL_DATASETS": range(clients)}
    flat = {"load_tall_mask": lambda *_: masks, "state_dict_to_vector": lambda named, **_: named["all"]}
    module, updates = theirs(path, *names, **around, **flat), cohort(clients)
    taus = rows(updates)
    found = module.generate_task_masks(taus, taus, torch.zeros(SPACE.numel).double(), taus.mean(0), threshold)
    masks.update({i: {"all": mask} for i, mask in enumerate(found)})
    expected = taus.mean(0) * module.construct_consensus_mask(None, voters, None)
    agree("Consensus", Consensus(threshold, voters).merge(updates, CONTEXT), expected)


class Scored(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.zeros(shape))


@pytest.mark.parametrize("clients", [2, 5, 20])
def test_frl(clients):
    """With our scores for the initial ones that they put back; who has the same sum they place in any order."""
    module, updates = theirs("SPIN-UMass__FRL/utils.py", "Find_rank", "FRL_Vote"), cohort(clients)
    names = {slot.name: slot.name.replace(".", "_") for slot in SPACE.slots}
    model = torch.nn.ModuleDict({names[slot.name]: Scored(slot.shape) for slot in SPACE.slots})
    orders, scores = {}, {}
    for slot in SPACE.slots:
        orders[names[slot.name]] = torch.stack([module.Find_rank(SPACE.view(u.delta, slot.name)) for u in updates])
        scores[names[slot.name]] = ((2 * torch.arange(slot.numel).double() + 1) / slot.numel - 1).float()
    module.FRL_Vote(model, orders, scores)
    ours = SPACE.tensors(RankVote().merge(updates, CONTEXT))
    for name, key in names.items():
        sums = orders[key].argsort(1).sum(0).numpy()
        both = [x.detach().numpy().ravel() for x in (ours[name], model[key].scores)]
        agree("FRL", *(x[np.lexsort((x, sums))] for x in both), 0.0)


@pytest.mark.parametrize("normalise", ["model", None])
def test_fisher(normalise):
    names = "ModelMergerBase", "FedAvgMerger"
    module = theirs("bloomberg__dataless-model-merging/src/model_merge/avg_merger.py", *names)
    asked = SimpleNamespace(fisher_normalize=normalise, fisher_smooth=1e-12)
    updates = measured(5, [1.0, 7.0, 2.0, 9.0, 3.0])
    tensors = {name: [one[name] for one in named(updates)] for name in (A, B, HEAD)}
    merger = module.FedAvgMerger(None, asked, [], None)
    weights = torch.tensor([u.weight for u in updates]).double()
    expected = merger.fisher_weighted_average(tensors, weights, fishers(updates))
    agree("Fisher", Fisher(1e-12, normalise is not None).merge(updates, CONTEXT), SPACE.flatten(expected))


def test_fisher_with_the_floor_that_mats_has():
    path = "r-three__mats/src/merging/utils/model_ops.py"
    used = "reduceAll_modelParameters", "pairwiseMap_modelParameters", "set_minimum", "scale_andSum", "divide"
    around = vars(theirs(path, *used)) | {"getDataset_fromCheckpointFilepath": lambda name: name}
    module = theirs("r-three__mats/src/merging/diagonal_fisherMerging.py", "diagonal_fisherMerging", **around)
    updates = [Update(u.delta, 1.0, {"fisher": u.statistics["fisher"].where(u.delta > 0, 0.0)}) for u in measured(5)]
    expected, _ = module.diagonal_fisherMerging(1.0, *(dict(enumerate(x)) for x in (named(updates), fishers(updates))))
    agree("Fisher", Fisher(1e-8, normalise=False).merge(updates, CONTEXT), SPACE.flatten(expected))


@pytest.mark.parametrize("percent", [5, 50])
def test_compeft(percent):
    """Where values are kept, and with which sign; their scale they choose on validation data."""
    module = theirs("prateeky2806__ComPEFT/src/merge_utils.py", "topk_values_mask", "replace_noise_and_constant")
    (update,) = cohort(1)
    _, _, kept = module.topk_values_mask(update.delta[None], percent, return_mask=True)
    expected = module.replace_noise_and_constant(update.delta.clone(), ~kept[0], 1.0, update.delta.sign())
    codec = Ternary((int(SPACE.numel * percent / 100) + 1) / SPACE.numel, threshold="global")
    ours = codec.decode(codec.encode(update.delta, SPACE, Sender()), SPACE, Sender())
    agree("ComPEFT", ours.sign(), expected.sign(), 0.0)


@pytest.mark.parametrize("alpha", [0.9, 0.1])
def test_regmean(alpha):
    """Without our ridge, and with its weights; a tensor without a Gram gets the mean in both."""
    names = "ModelMergerBase", "FedAvgMerger"
    module = theirs("bloomberg__dataless-model-merging/src/model_merge/avg_merger.py", *names)
    asked = SimpleNamespace(regmean_exclude_param_regex=[], regmean_diag=False, regmean_reduce_nondiag=alpha)
    updates = measured(5, [1.0, 7.0, 2.0, 9.0, 3.0])
    tensors = {name: [one[name] for one in named(updates)] for name in (A, B, HEAD)}
    module_grams = [{B.removesuffix(".weight"): gram} for gram in grams(updates)]
    merger = module.FedAvgMerger(None, asked, [], None)
    expected = merger.regmean_mean_params(tensors, module_grams, [u.weight / 22 for u in updates])
    agree("RegMean", RegMean(1 - alpha, 1e-12).merge(updates, CONTEXT), SPACE.flatten(expected))


def mats(file, *names):
    """A file of theirs with what it uses; where a tensor lies does not matter."""
    used = "reduceAll_modelParameters", "pairwiseMap_modelParameters", "element_wise_multiply", "scale_andSum"
    operations = theirs("r-three__mats/src/merging/utils/model_ops.py", *used)
    solver = {"cg": cg, "LinearOperator": LinearOperator, "getDataset_fromCheckpointFilepath": lambda name: name}
    return theirs(f"r-three__mats/src/merging/{file}.py", *names, **vars(operations), **solver)


def floats(tensors):
    return {name: tensor.float() for name, tensor in tensors.items()}


@pytest.mark.parametrize("iterations", [1, 4])
def test_mats_with_fisher(iterations):
    """They compute in float32."""
    module = mats("conjugateGradient_diagonalFisher", "cg_forward", "conjugateGradient_diagonalFisher")
    updates = measured(5)
    checkpoints = {i: floats(one) for i, one in enumerate(named(updates))}
    known = {i: floats(one) for i, one in enumerate(fishers(updates))}
    expected, _ = module.conjugateGradient_diagonalFisher(iterations, "average", checkpoints, known, None)
    agree("MaTS, Fisher", MaTS(iterations).merge(updates, CONTEXT), SPACE.flatten(expected), 1e-4)


@pytest.mark.parametrize("iterations", [1, 3])
def test_mats_with_grams(iterations):
    """Of B; a name with "ia3" in it keeps their tensors off a GPU."""
    module, updates, name = mats("conjugateGradient_fisherMerging", "cg_forward"), measured(5), "ia3"
    transposed = [one[B].T for one in named(updates)]
    total = sum(grams(updates)).float()
    product = sum(gram @ b for gram, b in zip(grams(updates), transposed, strict=True)).float()
    mean = (sum(transposed) / 5).float()
    expected, _ = module.cg_forward({name: total}, {name: product}, {name: mean}, iterations, [name], True)
    ours = SPACE.tensors(MaTS(iterations, "gram").merge(updates, CONTEXT))[B]
    agree("MaTS, Gram", ours, expected[name], 1e-4)


@pytest.mark.parametrize("iterations", [1, 4])
def test_mats_with_kronecker_factors(iterations, monkeypatch):
    """With diagonal factors at the outputs, where theirs are whole."""
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    module, updates = mats("conjugateGradient_fisherMerging", "cg_forwardBackward"), measured(5)
    inputs = [gram.float() for gram in grams(updates)]
    outputs = [torch.diag(f[B].sum(1).float()) / g.trace() for f, g in zip(fishers(updates), inputs, strict=True)]
    transposed = [one[B].T.float() for one in named(updates)]
    product = sum(g @ b @ f for g, b, f in zip(inputs, transposed, outputs, strict=True))
    wrapped = [[{B: one} for one in side] for side in (inputs, outputs)]
    start, module_name = {B: sum(transposed) / 5}, B.removesuffix(".weight")
    expected, _ = module.cg_forwardBackward(*wrapped, {B: product}, start, iterations, [module_name])
    ours = SPACE.tensors(MaTS(iterations, "kronecker").merge(updates, CONTEXT))[B]
    agree("MaTS, Kronecker", ours, expected[B], 1e-4)


class Surroundings:
    """Where their loop logs and measures."""

    fabric = SimpleNamespace(device="cpu", log=lambda *_, **__: None)
    log_dir, _program = None, SimpleNamespace(taskpool=SimpleNamespace(_test_datasets=None))

    def profile(self, _):
        return nullcontext()

    def print_profile_summary(self):
        pass


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_opcm(alpha):
    """Their whole loop, which is given models and gives one."""
    root = "tanganke__fusion_bench/fusion_bench"
    keys = "_validate_state_dict_same_keys", "_validate_state_dict_list_not_empty", "state_dict_sub"
    around = vars(theirs(f"{root}/utils/state_dict_arithmetic.py", *keys))
    around |= vars(theirs(f"{root}/utils/parameters.py", "state_dict_to_vector"))
    around |= vars(theirs(f"{root}/models/utils.py", "is_leaf_module"))
    around |= vars(theirs(f"{root}/method/opcm/utils.py", "_svd", "svd", "get_task_vector_norm", **around))
    around |= {"LightningFabricMixin": Surroundings, "cast": lambda _, x: x, "CLIPVisionModelTaskPool": None}
    around |= {"BaseAlgorithm": type("Base", (), {}), "SimpleProfilerMixin": type("Mixin", (), {})}
    updates = cohort(6)
    loop = theirs(f"{root}/method/opcm/opcm.py", "OPCMForCLIP", **around).OPCMForCLIP(alpha, False, None, False)
    merged = loop.run(Models(updates))
    expected = torch.cat([merged[name].weight.data.flatten() for name in "abc"])
    agree("OPCM", OPCM(alpha).merge(updates, CONTEXT), expected)
