"""The ceiling: the same adapter trained on all sites' data in one place."""

import time
from collections.abc import Mapping

from fedpeft.config import Experiment
from fedpeft.preparation import prepare
from fedpeft.random import Purpose, Stream
from fedpeft.training import Job, Settings


def central(experiment: Experiment, epochs: int, most_steps: int | None = None) -> Mapping[str, float]:
    """Test loss and accuracy after some epochs of AdamW at batch 32, 3/4 of them at rate 3e-3 and the rest at 6e-4.

    "train_s" is the time that it took, without measuring.
    """
    known = experiment.data
    prepared = prepare(experiment.model, experiment.peft, known.source, known.labels, experiment.seed)
    trainer = prepared.trainer
    train, test = trainer.encode(prepared.train), trainer.encode(prepared.test)
    vector = trainer.adapted.read()
    steps = most_steps or epochs * len(train) // 32
    began = time.perf_counter()
    for part, share, rate in ((1, 3, 3e-3), (2, 1, 6e-4)):
        order, dropout = (Stream(experiment.seed, purpose, part) for purpose in (Purpose.DATA, Purpose.DROPOUT))
        job = Job(vector, train, Settings(max(1, steps * share // 4), 32, rate), order, dropout)
        vector = next(iter(trainer.train([job]))).vector
    seconds = time.perf_counter() - began
    return {**trainer.evaluate(vector, test), "train_s": seconds}
