"""What a strategy declares is what it does; `test_sums` proves that sums are sums, `test_averaging` that means do."""

import gc
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from fedpeft import strategies
from fedpeft.codecs import Context as Sender
from fedpeft.codecs import Ternary
from fedpeft.config import Experiment
from fedpeft.federation.optimizer import ServerOptimizer
from fedpeft.federation.plan import Plan
from fedpeft.strategies import NAMES, Context, Krum, RankAllocation, Scaled, capabilities, columns, parse
from fedpeft.ternary import TernaryDelta
from fedpeft.training import Settings
from tests.codecs.examples import without_type_checks
from tests.strategies.examples import EXAMPLES, SPACE, START, context, updates

STRATEGIES = [e.strategy for e in EXAMPLES]
PAGE = (Path(__file__).parents[2] / "docs" / "strategies.md").read_text()
every_strategy = pytest.mark.parametrize("strategy", STRATEGIES, ids=repr)


def those_that(declare):
    return pytest.mark.parametrize("strategy", [s for s in STRATEGIES if declare(s)], ids=repr)


class Decoding(Sequence):
    """Updates as the journal has them: decoded anew whenever one is read, and kept by nobody here."""

    def __init__(self, cohort, weigh=lambda: 0):
        self.cohort, self.reads, self.held, self.weigh = cohort, [0] * len(cohort), 0, weigh

    def __len__(self):
        return len(self.cohort)

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[j] for j in range(*i.indices(len(self)))]
        update = self.cohort[i]
        self.reads[i] += 1
        if i == len(self) - 1:
            self.held = max(self.held, self.weigh())
        sent = replace(update.sent) if isinstance(update.sent, TernaryDelta) else update.sent.clone()
        return replace(update, sent=sent, statistics={n: s.clone() for n, s in update.statistics.items()})


def bytes_alive():
    """Of all tensors and bit planes made since `gc.freeze`."""
    gc.collect()
    found = gc.get_objects()
    storages = {s.data_ptr(): s.nbytes() for t in found if type(t) is torch.Tensor for s in [t.untyped_storage()]}
    return sum(storages.values()) + sum(planes.nbytes for planes in found if type(planes) is TernaryDelta)


def held(strategy, clients):
    """Bytes alive when the last update is about to be read."""
    decoding, ctx = Decoding(updates(clients), bytes_alive), context(strategy)
    gc.freeze()
    try:
        strategy.merge(decoding, ctx)
    finally:
        gc.unfreeze()
    return decoding.held


def planes(clients):
    codec, cohort = Ternary(density=0.4), updates(clients)
    return [replace(u, sent=codec.planes(codec.encode(u.delta, SPACE, Sender()), SPACE, Sender())) for u in cohort]


@every_strategy
@without_type_checks()
def test_memory_grows_with_the_cohort_unless_it_streams(strategy):
    few, many = held(strategy, 8), held(strategy, 64)
    one_float_for_each = 4 * 56
    assert (many - few < one_float_for_each) == strategy.streaming
    assert strategy.streaming or not strategy.additive


@every_strategy
def test_no_ternary_update_is_written_out_where_it_says_so(strategy, monkeypatch):
    """Rules of order write out blocks, here of a word."""
    monkeypatch.setattr(columns, "_VALUES", 64)
    whole, dense = [], TernaryDelta.dense
    monkeypatch.setattr(TernaryDelta, "dense", lambda self: [whole.append(self.numel), dense(self)][1])
    for cohort in (planes(9), Decoding(planes(9))):
        strategy.merge(cohort, context(strategy))
    assert (max(whole, default=0) < SPACE.numel) == strategy.ternary


@pytest.mark.parametrize("strategy", [*STRATEGIES, RankAllocation(Krum(1))], ids=repr)
@without_type_checks()
def test_updates_are_read_as_often_as_it_says(strategy):
    decoding = Decoding(updates(9))
    strategy.merge(decoding, context(strategy))
    assert set(decoding.reads) == {strategy.passes}


@those_that(lambda s: s.needs)
@without_type_checks()
def test_a_merge_without_a_statistic_that_it_needs_is_refused(strategy):
    for name in strategy.needs:
        without = [replace(u, statistics={n: s for n, s in u.statistics.items() if n != name}) for u in updates(9)]
        with pytest.raises(ValueError, match=f"expected an update with the statistic '{name}'"):
            strategy.merge(without, context(strategy))


@every_strategy
def test_a_merge_takes_no_statistic_that_it_does_not_name(strategy):
    cohort = [replace(u, statistics={n: u.statistics[n] for n in strategy.needs}) for u in updates(9)]
    assert torch.equal(strategy.merge(cohort, context(strategy)), strategy.merge(updates(9), context(strategy)))


@those_that(lambda s: s.rooted)
def test_a_merge_without_the_update_that_it_goes_by_is_refused(strategy):
    with pytest.raises(ValueError, match="needs a trusted delta"):
        strategy.merge(updates(9), Context(SPACE))


@every_strategy
def test_where_updates_began_matters_to_those_that_say_so(strategy):
    ctx = context(strategy)
    merged = [strategy.merge(updates(9), replace(ctx, start=start)) for start in (None, START, START.flip(0))]
    assert all(torch.equal(merged[0], other) for other in merged[1:]) != strategy.anchored


@every_strategy
def test_it_says_where_parameters_shall_be_or_where_they_shall_move(strategy):
    """With the same deltas every slot moves as far as the start does, but for those that are settled."""
    ctx, cohort = context(strategy), updates(9)
    here, there = (start + strategy.merge(cohort, replace(ctx, start=start)) for start in (START, START + 3))
    moved = SPACE.tensors(there - here)
    settled = {name for name, way in moved.items() if way.numel() and not torch.allclose(way, torch.tensor(3.0))}
    assert settled == strategy.settled(SPACE) - {name for name, way in moved.items() if not way.numel()}
    assert bool(settled) == strategy.settles


@every_strategy
def test_a_plan_takes_it_with_what_it_asks_for_alone(strategy):
    settings = Settings(supermask=0.5 if strategy.scores else 0.0)
    root = "site" if strategy.rooted else ""
    plans = {
        lr: partial(Plan, 1, strategy=strategy, optimizer=ServerOptimizer(f"SGD(lr={lr})"), root=root)
        for lr in (0.5, 1.0)
    }
    if strategy.offline:
        with pytest.raises(ValueError, match="cannot merge in a run"):
            plans[1.0](settings=settings)
        return
    plans[1.0](settings=settings)
    if strategy.rooted:
        with pytest.raises(ValueError, match="name a site with some as root"):
            plans[1.0](settings=settings, root="")
    if strategy.settles:
        with pytest.raises(ValueError, match="says where parameters shall be"):
            plans[0.5](settings=settings)
    else:
        plans[0.5](settings=settings)
    if strategy.scores:
        with pytest.raises(ValueError, match="merges the scores of a supermask"):
            plans[1.0]()
    if strategy.anchored:
        with pytest.raises(ValueError, match="with buffer: 2 they do not"):
            plans[1.0](settings=settings, buffer=2)


@every_strategy
def test_the_least_number_of_updates_is_enough_and_one_less_is_not(strategy):
    merged = strategy.merge(updates(strategy.least), context(strategy))
    assert merged.shape == (SPACE.numel,) and torch.isfinite(merged).all()
    with pytest.raises(ValueError, match="nothing to merge|merges at least"):
        strategy.merge(updates(strategy.least)[:-1], context(strategy))


def test_the_pages_table_is_what_the_classes_declare():
    table = re.search("<!-- table: begin -->\n(.*)<!-- table: end -->", PAGE, re.DOTALL)[1]
    assert table == capabilities.markdown(), "python -m fedpeft.strategies.capabilities prints the table of today"
    assert sorted(row.strategy for row in capabilities.capabilities()) == sorted(NAMES)


def test_what_the_table_says_of_arguments_is_so():
    rows = {row.strategy: row for row in capabilities.capabilities()}
    assert (rows["GeometricMedian"].passes, rows["CentredClip"].passes) == ("`iterations` + 1", "`iterations`")
    assert (rows["Krum"].least, rows["Consensus"].least) == ("2 `byzantine` + 3", "`agree`")
    assert rows["TIES"].ternary == rows["TIES"].runs == 'yes, no with `weights="peft"`'
    assert rows["RidgeHead"].needs == "`head` once in 4 rounds, no training once in 4 rounds, as inside"
    assert (rows["DARE"].sums, rows["DARE"].ternary, rows["RidgeHead"].settles) == ("as inside", "no", "yes")


def test_a_wrapper_that_neither_delegates_nor_decides_is_noticed():
    class Half(Scaled):
        least = property(lambda self: 1 + self.strategy.least)

    with pytest.raises(TypeError, match="neither as these do nor always the same"):
        capabilities._row("Half", Half)


def test_every_public_strategy_has_a_line_on_the_page_and_every_expression_parses():
    cells = re.findall(r"^\| ((?:`[A-Za-z_]+\(.*?\)` ?)+)\|", PAGE, re.MULTILINE)
    found = " ".join(repr(parse(expression)) for cell in cells for expression in re.findall("`(.*?)`", cell))
    assert {name for name in NAMES if f"{name}(" not in found} == set()
    functions = re.search(r"stand in no YAML:\n(.*?);", PAGE, re.DOTALL)[1]
    assert all(callable(getattr(strategies, name)) for name in re.findall(r"`(\w+)`", functions))


def test_every_yaml_of_the_page_is_an_experiment_and_its_class_a_strategy():
    blocks = dict.fromkeys(re.findall(r"^```(?:yaml|python)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL))
    *experiments, code = blocks
    assert [Experiment.model_validate(yaml.safe_load(text)).plan().rounds for text in experiments] == [12, 12]
    scope = {"__name__": __name__}
    exec(compile(code, "strategies.md", "exec"), scope)
    merged = scope["EqualMean"]().merge(updates(5), Context(SPACE))
    assert torch.allclose(merged, torch.stack([u.delta for u in updates(5)]).mean(0))
