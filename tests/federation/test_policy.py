"""A site's policy: what it allows passes, what it does not is refused by the rule's name, before anything is done."""

import math
from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpeft._proto import federation_pb2 as pb
from fedpeft.codecs import ErrorFeedback, Ternary, Uniform
from fedpeft.config import PolicySection
from fedpeft.errors import QuorumError, Reason, RefusedError
from fedpeft.federation import Client, ClientStore, Journal, Plan, Policy, messages
from fedpeft.federation.settings import of_round
from fedpeft.runtime.memory import MemoryTransport
from fedpeft.training import Settings
from tests.federation import world
from tests.federation.world import SPACE

BASE = "ab" * 32
STRICT = Policy(
    base_sha256=BASE,
    codecs=("ErrorFeedback", "Ternary"),
    broadcasts=("Uniform",),
    strategies=("Mean",),
    settings=("labels", "proximal"),
    most_local_steps=10,
    largest_learning_rate=1e-3,
    min_cohort=3,
    privacy=("masking",),
)


def task(**changes: object) -> pb.Task:
    """One that the strict policy allows but for the changes."""
    settings = of_round(Plan(rounds=1, settings=Settings(10, learning_rate=1e-3)), 1)
    for field in fields(Settings):
        if field.name in changes:
            setattr(settings, field.name, changes.pop(field.name))
    broadcasts = [pb.Broadcast(from_round=1, to_round=2, codec=str(changes.pop("broadcast", "Uniform(bits=4)")))]
    facts = {
        "codec": "ErrorFeedback(Ternary(density=0.2))",
        "strategy": "Mean()",
        "merged": 3,
        "privacy": ["masking", "noise"],
    }
    return pb.Task(settings=settings, broadcasts=broadcasts, **(facts | changes))


def test_what_is_allowed_passes() -> None:
    STRICT.check(task(), BASE)
    STRICT.check(task(local_steps=1, learning_rate=1e-9, merged=100, codec="Ternary()"), BASE)
    STRICT.check(task(labels="own", proximal=0.1), BASE)
    STRICT.check(task(start="", optimizer="", slots=""), BASE)
    Policy().check(pb.Task(codec="anything", merged=1, settings=pb.Settings(learning_rate=1e9)), "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": "Identity()"}, "codecs: this site allows ErrorFeedback, Ternary, was asked for Identity in"),
        ({"codec": "ErrorFeedback(Identity())"}, "was asked for Identity in 'ErrorFeedback"),
        ({"codec": "chain(Clip(1.0), Ternary())"}, "was asked for Clip, chain in"),
        ({"codec": "evil.Ternary()"}, "was asked for evil.Ternary in"),
        ({"codec": "Ternary"}, "was asked for nothing in 'Ternary'"),
        ({"codec": ""}, "codecs: ''"),
        ({"codec": "Ternary(" * 3}, "codecs: 'Ternary"),
        ({"codec": "x" * 5000}, "codecs: an expression has at most 4096 characters, got 5000"),
        ({"broadcast": "Ternary()"}, "broadcasts: this site allows Uniform, was asked for Ternary"),
        ({"strategy": "TIES()"}, "strategies: this site allows Mean, was asked for TIES"),
        ({"strategy": "'TIES'"}, "strategies: this site allows Mean, was asked for nothing"),
        ({"local_steps": 11}, "most_local_steps: this site allows at most 10, was asked for 11"),
        ({"learning_rate": 2e-3}, "largest_learning_rate: this site allows at most 0.001, was asked for 0.002"),
        ({"learning_rate": math.nan}, "largest_learning_rate: this site allows at most 0.001, was asked for nan"),
        ({"learning_rate": math.inf}, "largest_learning_rate"),
        (
            {"supermask": 0.5},
            "settings: this site allows supermask: 0.0, and others of labels, proximal, was asked for",
        ),
        ({"optimizer": "sgd"}, "was asked for optimizer: sgd"),
        ({"slots": "carried"}, "was asked for slots: carried"),
        ({"start": "own"}, "was asked for start: own"),
        ({"clip_norm": 0.0}, "settings: this site allows clip_norm: 1.0, and others of"),
        ({"weight_decay": math.nan}, "was asked for weight_decay: nan"),
        ({"slots": "x" * 5000}, "was asked for slots: xxx"),
        ({"merged": 2}, "min_cohort: this site allows at least 3 sites, was asked for a merge of 2"),
        ({"privacy": []}, "privacy: this site allows masking in force, was asked for a task without masking"),
        ({"privacy": ["noise"]}, "a task without masking"),
    ],
)
def test_what_is_not_allowed_is_refused_by_name(changes: dict[str, object], message: str) -> None:
    with pytest.raises(RefusedError) as refused:
        STRICT.check(task(**changes), BASE)
    assert refused.value.reason is Reason.POLICY
    assert message in refused.value.detail


def test_another_base_model_is_refused() -> None:
    with pytest.raises(RefusedError, match="base_sha256: this site allows abababababababab..., was asked for cdcdcdcd"):
        STRICT.check(task(), "cd" * 32)


def test_the_whole_adapter_always_comes_in_plain_fp16() -> None:
    whole = task()
    del whole.broadcasts[:]
    whole.broadcasts.add(from_round=0, to_round=2, codec="Identity(dtype='float16')")
    STRICT.check(whole, BASE)


@given(
    steps=st.integers(0, 20),
    rate=st.floats(allow_nan=True, allow_infinity=True),
    merged=st.integers(0, 5),
    codec=st.sampled_from(["Ternary()", "Identity()", "", "(", "1", "ErrorFeedback(Ternary())"]),
)
def test_no_rule_makes_another_one_weaker(steps: int, rate: float, merged: int, codec: str) -> None:
    asked = task(local_steps=steps, learning_rate=rate, merged=merged, codec=codec)

    def allows(policy: Policy) -> bool:
        try:
            policy.check(asked, BASE)
        except RefusedError:
            return False
        return True

    alone = [
        Policy(most_local_steps=10),
        Policy(largest_learning_rate=1e-3),
        Policy(min_cohort=3),
        Policy(codecs=STRICT.codecs),
        Policy(settings=STRICT.settings),
    ]
    assert allows(STRICT) == all(map(allows, alone))
    assert allows(Policy()) == (merged > 0 and not math.isnan(rate))


@pytest.mark.parametrize(
    "change",
    [{"most_local_steps": 0}, {"min_cohort": 0}, {"largest_learning_rate": 0.0}, {"largest_learning_rate": math.nan}],
)
def test_a_policy_checks_its_numbers(change: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        replace(STRICT, **change)


def test_a_policy_asks_for_protections_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"expected some of \['masking', 'noise'\], got \['magic'\]"):
        Policy(privacy=("magic",))


def test_a_policy_names_settings_that_there_are_and_no_bound() -> None:
    for name in ("supermasks", "local_steps"):
        with pytest.raises(ValueError, match=rf"settings: expected some of \['weight_decay', .*\], got \['{name}'\]"):
            Policy(settings=(name,))
    assert {field.name for field in fields(Settings)} == {field.name for field in pb.Settings.DESCRIPTOR.fields}


def test_nothing_but_the_defaults_is_allowed_by_an_empty_list() -> None:
    Policy(settings=()).check(task(), BASE)
    with pytest.raises(RefusedError, match="settings: this site allows labels: all, was asked for labels: own"):
        Policy(settings=()).check(task(labels="own"), BASE)


def test_at_most_as_many_examples_as_at_least() -> None:
    assert Policy(least_examples=9, most_examples=9).most_examples == 9
    with pytest.raises(ValueError, match="most_examples must be at least least_examples, 9, got 8"):
        Policy(least_examples=9, most_examples=8)
    with pytest.raises(ValueError, match="most_examples must be at least least_examples, 5, got 4"):
        PolicySection(most_examples=4)


def test_the_servers_operator_learns_which_site_refused_and_why(tmp_path: Path) -> None:
    handlers, confided = world.clients(tmp_path / "sites"), []
    trainer = world.Puller()
    handlers["bob"] = Client(
        trainer,
        world.examples(1, 3),
        SPACE,
        ClientStore(tmp_path / "sites" / "bob", SPACE),
        policy=Policy(codecs=("Identity",)),
        confide=confided.append,
    )
    plan = Plan(rounds=2, codec=ErrorFeedback(Ternary()), broadcast=Uniform(bits=4))
    with (
        Journal(tmp_path / "journal") as journal,
        pytest.raises(QuorumError, match="bob: policy: codecs: this site allows Identity, was asked for ErrorFeedback"),
    ):
        list(world.server(plan, MemoryTransport(handlers), journal).run())
    assert not trainer.jobs
    assert not (tmp_path / "sites" / "bob").exists()
    assert "codecs: this site allows Identity" in confided[0]


def test_a_round_counts_as_its_cohort_what_it_merges_at_least(tmp_path: Path) -> None:
    """A site that asks for a minimum is not told of those who may not answer."""
    transport = world.Tampering(world.clients(None))
    with Journal(tmp_path / "journal") as journal:
        list(world.server(Plan(rounds=1, quorum=0.5), transport, journal).run())
    assert {asked.merged for _, asked in transport.asked} == {2}


def test_a_refusal_of_any_length_fits_into_a_reply() -> None:
    client = Client(world.Puller(), world.examples(0, 1), SPACE, ClientStore(None, SPACE), policy=Policy(codecs=("é",)))
    answer, _ = messages.split(client(pb.Task(round=1, codec="(" * 100_000).SerializeToString()))
    assert answer.refusal.reason == "policy"
