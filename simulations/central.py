"""The ceiling: the same adapter trained on all sites' data in one place."""

import torch

from fedpeft import data
from fedpeft.config import Experiment
from fedpeft.random import Purpose, Stream
from fedpeft.simulation import make_trainer
from fedpeft.training import Job, Settings


def central_accuracy(experiment: Experiment, epochs: int) -> float:
    """Test accuracy after some epochs of AdamW at batch 32: 3/4 of them at learning rate 3e-3, the rest at 6e-4."""
    torch.set_num_threads(experiment.model.threads)
    corpus = data.parse_source(experiment.data.source, imports=True).load(experiment.seed)
    trainer = make_trainer(experiment, corpus)
    train, test = trainer.encode(corpus.train), trainer.encode(corpus.test)
    vector = trainer.adapted.read()
    steps = epochs * len(train) // 32
    for part, share, rate in ((1, 3, 3e-3), (2, 1, 6e-4)):
        streams = (Stream(experiment.seed, purpose, part) for purpose in (Purpose.DATA, Purpose.DROPOUT))
        job = Job(vector, train, Settings(max(1, steps * share // 4), 32, rate), *streams)
        vector = next(iter(trainer.train([job]))).vector
    return trainer.evaluate(vector, test)["accuracy"]
