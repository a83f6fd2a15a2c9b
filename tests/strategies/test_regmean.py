"""RegMean against least squares on the activations themselves."""

import numpy as np
import pytest
import torch

from fedpeft.space import Slot, Space
from fedpeft.strategies import Context, Mean, RegMean, Update
from fedpeft.strategies.statistics import gram_slots, statistic_space

SPACE = Space(
    (
        Slot("q.lora_A.weight", (4, 11), "lora_A"),
        Slot("q.lora_B.weight", (7, 4), "lora_B"),
        Slot("v.lora_A.weight", (3, 11), "lora_A"),
        Slot("v.lora_B.weight", (29, 3), "lora_B"),
        Slot("v.lora_B.bias", (29,), "lora_B"),
        Slot("conv.lora_B.weight", (5, 2, 1, 1), "lora_B"),
        Slot("score.weight", (6, 9), "head"),
    )
)
EXACT = RegMean(shrink=0.0, ridge=1e-12)


def sites(clients, scale=1.0):
    """Updates, and the inputs of each B that their Grams are of."""
    draw = np.random.default_rng(clients)
    cohort, inputs = [], []
    for _ in range(clients):
        z = {s.name: scale * draw.standard_normal((40, s.shape[1])) @ draw.standard_normal((s.shape[1],) * 2)
             for s in gram_slots(SPACE)}  # fmt: skip
        gram = statistic_space("gram", SPACE).flatten({n: torch.from_numpy(x.T @ x / len(x)) for n, x in z.items()})
        delta = torch.from_numpy(draw.standard_normal(SPACE.numel)).float()
        cohort.append(Update(delta, float(draw.uniform(1, 50)), {"gram": gram}))
        inputs.append(z)
    return cohort, inputs


def least_squares(cohort, inputs, name, start=0.0):
    """The B whose answers are nearest to all sites' own, each input weighted as its site is."""
    roots = [np.sqrt(u.weight / len(z[name])) for u, z in zip(cohort, inputs, strict=True)]
    own = [SPACE.view(u.delta + start, name).double().numpy() for u in cohort]
    z = np.concatenate([root * z[name] for root, z in zip(roots, inputs, strict=True)])
    y = np.concatenate([root * z[name] @ b.T for root, z, b in zip(roots, inputs, own, strict=True)])
    return np.linalg.lstsq(z, y, rcond=None)[0].T


@pytest.mark.parametrize("clients", [1, 2, 9, 128])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_each_b_is_the_least_squares_solution_and_the_rest_is_the_mean(clients, scale):
    cohort, inputs = sites(clients, scale)
    merged, mean = (SPACE.tensors(s.merge(cohort, Context(SPACE))) for s in (EXACT, Mean()))
    for slot in SPACE.slots:
        if slot in gram_slots(SPACE):
            assert np.allclose(merged[slot.name].numpy(), least_squares(cohort, inputs, slot.name), atol=2e-4)
            assert clients == 1 or not torch.allclose(merged[slot.name], mean[slot.name], atol=1e-2)
        else:
            assert torch.equal(merged[slot.name], mean[slot.name])
    assert [slot.name for slot in gram_slots(SPACE)] == ["q.lora_B.weight", "v.lora_B.weight"]


def test_on_deltas_it_is_what_it_is_on_adapters():
    start = torch.linspace(-2, 2, SPACE.numel)
    cohort, inputs = sites(5)
    merged = EXACT.merge(cohort, Context(SPACE, start))
    for slot in gram_slots(SPACE):
        expected = least_squares(cohort, inputs, slot.name, start) - SPACE.view(start, slot.name).numpy()
        assert np.allclose(SPACE.view(merged, slot.name).numpy(), expected, atol=2e-4)


def test_the_merged_b_answers_more_like_each_site_than_the_mean_does():
    cohort, inputs = sites(6)

    def loss(strategy):
        merged = strategy.merge(cohort, Context(SPACE))
        return sum(
            u.weight * np.square(z[s.name] @ (SPACE.view(merged - u.delta, s.name).double().numpy()).T).mean()
            for u, z in zip(cohort, inputs, strict=True)
            for s in gram_slots(SPACE)
        )

    assert loss(EXACT) <= loss(RegMean()) < loss(Mean())
    assert loss(RegMean(shrink=0.0)) <= loss(RegMean(shrink=0.3)) <= loss(RegMean(shrink=1.0))


@pytest.mark.parametrize("shrink", [0.0, 0.1, 0.7, 1.0])
def test_off_diagonals_are_shrunk_as_in_the_paper(shrink):
    cohort, _ = sites(4)
    merged = RegMean(shrink, 1e-12).merge(cohort, Context(SPACE))
    own = statistic_space("gram", SPACE)
    for slot in gram_slots(SPACE):
        above, below = 0, 0
        for update in cohort:
            g = own.view(update.statistics["gram"], slot.name).double()
            g = update.weight * ((1 - shrink) * g + shrink * torch.diag(g.diagonal()))
            above, below = above + g @ SPACE.view(update.delta, slot.name).double().T, below + g
        assert torch.allclose(SPACE.view(merged, slot.name), (below.inverse() @ above).T.float(), atol=1e-4)


def test_grams_that_know_nothing_leave_the_mean():
    cohort = [Update(u.delta, u.weight, {"gram": torch.zeros_like(u.statistics["gram"])}) for u in sites(5)[0]]
    for strategy in (RegMean(), RegMean(normalise=True)):
        assert torch.allclose(strategy.merge(cohort, Context(SPACE)), Mean().merge(cohort, Context(SPACE)), atol=1e-6)


def test_where_only_one_direction_is_known_the_others_keep_the_mean():
    z = torch.zeros(25)
    z[0] = 1.0
    cohort = [Update(u.delta, u.weight, {"gram": z * (i + 1)}) for i, u in enumerate(sites(3)[0])]
    merged, mean = (SPACE.tensors(s.merge(cohort, Context(SPACE))) for s in (RegMean(), Mean()))
    b = merged["q.lora_B.weight"]
    assert torch.allclose(b[:, 1:], mean["q.lora_B.weight"][:, 1:], atol=1e-5)
    weights = torch.tensor([u.weight * (i + 1) for i, u in enumerate(cohort)])
    columns = torch.stack([SPACE.view(u.delta, "q.lora_B.weight")[:, 0] for u in cohort])
    assert torch.allclose(b[:, 0], weights / weights.sum() @ columns, atol=1e-4)


def test_a_huge_claim_has_all_the_say_unless_it_is_normalised():
    cohort, _ = sites(8)
    liar = Update(torch.full((SPACE.numel,), 50.0), 1.0, {"gram": 1e20 * cohort[0].statistics["gram"]})
    taken, kept = (RegMean(normalise=n).merge([*cohort, liar], Context(SPACE)) for n in (False, True))
    for slot in gram_slots(SPACE):
        assert torch.allclose(SPACE.view(taken, slot.name), SPACE.view(liar.delta, slot.name), rtol=1e-2)
        assert float(SPACE.view(kept, slot.name).abs().max()) < 25


@pytest.mark.parametrize(
    ("change", "message"),
    [({"shrink": -0.1}, "shrink must lie in"), ({"shrink": 1.1}, "shrink"), ({"shrink": float("nan")}, "shrink"),
     ({"ridge": 0.0}, "ridge must lie in"), ({"ridge": 2.0}, "ridge"), ({"ridge": float("nan")}, "ridge")],
)  # fmt: skip
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        RegMean(**change)
