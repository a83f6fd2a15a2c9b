"""Local training by back-propagation: a loop of AdamW or SGD over one resident model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fedpeft.adapters import AdaptedModel
from fedpeft.data import Example
from fedpeft.errors import ConfigError, DataError
from fedpeft.random import Stream, scoped_torch_generator
from fedpeft.strategies.statistics import statistic_space
from fedpeft.training.base import Encoded, Job, Settings, Trained
from fedpeft.training.components import Leading
from fedpeft.training.models import BaseModel, Task
from fedpeft.training.statistics import Grams, Heads, Squares, drawn
from fedpeft.training.supermask import trained

_IGNORED = -100


class FirstOrderTrainer:
    """AdamW or SGD with gradient clipping, for sequence classification and causal language modelling.

    The model is loaded once; a job sets the adapter, trains it with a fresh optimizer and reads it back. The adapter
    stays in float32; with `dtype="bfloat16"` the frozen base and the activations are bfloat16.

    Args:
        base: the pretrained model.
        adapted: the same model with its adapter.
        task: what the model is trained for.
        max_length: tokens an example is cut to.
        device: "cpu", "cuda", "cuda:1", ...
        dtype: of the base model and of activations.
    """

    def __init__(
        self, base: BaseModel, adapted: AdaptedModel, task: Task, max_length: int, device: str, dtype: str
    ) -> None:
        self.adapted, self.task, self.max_length = adapted, task, max_length
        self.device, self.dtype = torch.device(device), getattr(torch, dtype)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"device: {device!r} asked for, but torch sees no CUDA device; use 'cpu'")
        self._tokenizer = base.tokenizer
        trained = {id(p) for p in adapted.parameters()}
        for parameter in adapted.model.parameters():
            if id(parameter) not in trained:
                parameter.data = parameter.data.to(self.dtype)
        adapted.model.to(self.device)

    def encode(self, examples: Sequence[Example]) -> Encoded:
        """Tokenise once what is trained or evaluated on many times.

        Raises:
            DataError: an example has no label for a classifier, or no token to learn.
        """
        if self.task == "causal-lm":
            return self._encode_text(examples)
        for i, example in enumerate(examples):
            if example.label is None:
                raise DataError(f"example {i} has no label, which sequence classification needs")
        texts = [example.text for example in examples]
        ids = self._tokenizer(texts, truncation=True, max_length=self.max_length)["input_ids"] if texts else []
        targets = tuple(int(example.label) for example in examples if example.label is not None)
        return Encoded(tuple(map(tuple, ids)), targets, tuple(sorted(set(targets))))

    def _encode_text(self, examples: Sequence[Example]) -> Encoded:
        """Begin token, prompt, text, end token; no loss is taken on what the model is given.

        What is too long loses the end of its text, then the beginning of its prompt.
        """
        begin, end = (
            [] if token is None else [token] for token in (self._tokenizer.bos_token_id, self._tokenizer.eos_token_id)
        )
        tokens, targets = [], []
        for i, example in enumerate(examples):
            prompt, text = (
                self._tokenizer(part, add_special_tokens=False)["input_ids"] if part else []
                for part in (example.prompt, example.text)
            )
            learnt = (text + end)[: self.max_length - len(begin) - bool(prompt)]
            given = begin + prompt[max(0, len(prompt) - (self.max_length - len(begin) - len(learnt))) :]
            if len(given) + len(learnt) < 2 or not learnt:
                raise DataError(f"example {i} has no token to learn; give it a text")
            tokens.append(tuple(given + learnt))
            targets.append((_IGNORED,) * len(given) + tuple(learnt))
        return Encoded(tuple(tokens), tuple(targets))

    def train(self, jobs: Sequence[Job]) -> Iterator[Trained]:
        """Work on the jobs one after another."""
        for job in jobs:
            yield self._train(job)

    def evaluate(self, vector: Float[Tensor, " d"], data: Encoded) -> Mapping[str, float]:
        """Mean loss (nats; per token for a language model) and accuracy of an adapter on examples."""
        self.adapted.write(vector)
        self.adapted.model.eval()
        order = np.argsort([len(tokens) for tokens in data.tokens], kind="stable")
        batch_size = {"sequence-classification": 64, "causal-lm": 8}[self.task]  # logits of a text are vocabulary-wide
        loss = hits = count = 0.0
        with torch.inference_mode():
            for begin in range(0, len(order), batch_size):
                logits, targets = self._forward(data, order[begin : begin + batch_size])
                n = int((targets != _IGNORED).sum())
                loss += float(functional.cross_entropy(logits, targets, ignore_index=_IGNORED)) * n
                hits += float((logits.argmax(dim=1) == targets).sum())
                count += n
        return {"loss": loss / count, "accuracy": hits / count}

    def statistics(self, job: Job, names: Sequence[str], examples: int) -> Mapping[str, Float[Tensor, " s"]]:
        """Measure statistics of the adapter that the job starts from, on some of its examples.

        The Fisher information is that of the model's own distribution, as Matena and Raffel (2021, arXiv 2111.09832)
        have it, with one label drawn for each example (for each token of a language model) from the softmax that the
        job trains: the true labels' gradients vanish where a site has learnt them by heart, and say more of its data.
        """
        self.adapted.write(job.start)
        self.adapted.model.eval()
        rows = job.order.permutation(len(job.data))[:examples]
        uniform = torch.from_numpy(job.dropout.uniform(sum(len(job.data.tokens[row]) for row in rows)))
        squares = Squares(self.adapted) if "fisher" in names else None
        grams = Grams(self.adapted) if "gram" in names else None
        with grams.watching() if grams else nullcontext(), torch.set_grad_enabled(squares is not None):
            for i in range(len(rows) if squares or grams else 0):
                logits, targets = self._forward(job.data, rows[i : i + 1])
                if squares:
                    logits = _over_own(logits, job)[targets != _IGNORED]
                    labels, uniform = drawn(logits, uniform[: len(logits)]), uniform[len(logits) :]
                    squares.add(functional.cross_entropy(logits, labels, reduction="sum"))
        heads = self._heads(job, examples) if "head" in names else None
        found = {"fisher": squares, "gram": grams, "head": heads}
        return {
            name: statistic_space(name, self.adapted.space).flatten(measured.mean())
            for name in names
            if (measured := found[name])
        }

    def _heads(self, job: Job, examples: int) -> Heads:
        """Sums over the inputs of heads, of examples by length so that little is padded."""
        heads, rows = Heads(self.adapted), job.order.permutation(len(job.data))[:examples]
        rows = rows[np.argsort([len(job.data.tokens[row]) for row in rows], kind="stable")]
        with heads.watching(), torch.inference_mode():
            for begin in range(0, len(rows), 64):
                heads.add(self._forward(job.data, rows[begin : begin + 64])[1])
        return heads

    def loss(self, job: Job, rows: np.ndarray) -> Tensor:
        """Mean loss (nats) on some of a job's examples, of the adapter that the model has."""
        logits, targets = self._forward(job.data, rows)
        return functional.cross_entropy(_over_own(logits, job), targets, ignore_index=_IGNORED)

    def _train(self, job: Job) -> Trained:
        settings = job.settings
        held = (
            Leading(self.adapted, job.start, job.rank)
            if job.rank
            else trained(self.adapted, job.start, settings.supermask, job.order.seed)
        )
        self.adapted.model.train()
        losses = []
        with self.adapted.training(job.slots), scoped_torch_generator(job.dropout, self.device):
            moved = [parameter for parameter in held.parameters if parameter.requires_grad]
            begun = [parameter.detach().clone() for parameter in moved] if settings.proximal else []
            optimizer = _optimizer(moved, settings)
            for rows in batches(job.data, settings.local_steps, settings.batch_size, job.order):
                loss = self.loss(job, rows)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                held.pull()
                for parameter, start in zip(moved, begun, strict=False):
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach() - start, alpha=settings.proximal)
                if settings.clip_norm:
                    torch.nn.utils.clip_grad_norm_(moved, settings.clip_norm)
                optimizer.step()
                held.push()
                losses.append(loss.detach())
        optimizer.zero_grad()
        return Trained(held.read(), {"loss": float(torch.stack(losses).double().mean())} if losses else {})

    def _forward(self, data: Encoded, rows: np.ndarray) -> tuple[Tensor, Tensor]:
        """Logits (n, classes) and targets (n,) of some examples, padded to the longest of them."""
        chosen = [data.tokens[i] for i in rows]
        width = max(map(len, chosen))
        ids = torch.full((len(chosen), width), self._tokenizer.pad_token_id, dtype=torch.int64)
        mask = torch.zeros((len(chosen), width), dtype=torch.int64)
        for i, tokens in enumerate(chosen):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            mask[i, : len(tokens)] = 1
        with self._autocast():
            logits = self.adapted.model(input_ids=ids.to(self.device), attention_mask=mask.to(self.device)).logits
        if self.task == "sequence-classification":
            return logits.float(), torch.tensor([data.targets[i] for i in rows], device=self.device)
        targets = torch.full((len(chosen), width), _IGNORED, dtype=torch.int64)
        for i, row in enumerate(rows):
            wanted = data.targets[row]
            targets[i, : len(chosen[i])] = torch.tensor(wanted)
        # A prompt-tuned model answers with logits for its virtual tokens too; the text's are the last ones.
        logits = logits[:, -width:]
        return logits[:, :-1].reshape(-1, logits.shape[-1]).float(), targets[:, 1:].reshape(-1).to(self.device)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


def _optimizer(parameters: Sequence[Tensor], settings: Settings) -> torch.optim.Optimizer:
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)


def _over_own(logits: Float[Tensor, "n classes"], job: Job) -> Float[Tensor, "n classes"]:
    """The logits with those of classes that the site does not have taken out, and calibrated, where the job says so."""
    if job.settings.labels != "own" or len(job.data.labels) < 2:
        return logits
    held = torch.zeros(logits.shape[1], dtype=torch.int64)
    held[: job.data.held.size] = torch.from_numpy(job.data.held)
    if job.settings.calibration:
        logits = logits - (job.settings.calibration * held.clamp(min=1).float() ** -0.25).to(logits.device)
    return logits.masked_fill((held == 0).to(logits.device), float("-inf"))


def batches(data: Encoded, steps: int, batch_size: int, stream: Stream) -> list[np.ndarray]:
    """Rows of each step: shuffled passes over the data, each cut into batches of like lengths.

    The rows of a pass are sorted by length before they are cut, and the batches of the call are shuffled after, so that
    little is spent on padding (half the tokens of a step, on the demo's text). A pass leaves out the rows that fill no
    batch, other ones each time, so no row stands in a batch twice; a site with fewer rows than a batch repeats them.
    """
    n = len(data)
    if n == 0:
        raise DataError("the site has no examples to train on")
    if steps == 0:
        return []
    window = max(batch_size, n // batch_size * batch_size)
    wanted = steps * batch_size
    passes = -(-wanted // window)
    keys = stream.words(2 * (n * passes + steps)).view(np.uint64)
    shuffled = np.argsort(keys[: n * passes].reshape(passes, n), axis=1, kind="stable")
    rows = np.tile(shuffled, (1, -(-window // n)))[:, :window]
    lengths = np.array([len(tokens) for tokens in data.tokens])
    batches = []
    for begin, chosen in zip(range(0, wanted, window), rows, strict=True):
        kept = chosen[: wanted - begin]
        batches += list(kept[np.argsort(lengths[kept], kind="stable")].reshape(-1, batch_size))
    return [batches[i] for i in np.argsort(keys[n * passes :], kind="stable")]
