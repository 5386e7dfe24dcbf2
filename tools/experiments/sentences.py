"""A sentence encoder on two small real tasks: polarity of 200 sentences, similarity of 50 documents.

Both are cross-validated over five folds: polarity over sentences, with a new linear head; similarity over documents:
trained on people's scores of pairs among the other documents, tested on the pairs with at least one held-out document,
none of whose scores was trained on. "none" is the encoder as it is, under a trained head for polarity and without any
training for similarity: what the variants are compared with.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import laurel_graph as lg
from laurel_graph.tools.console import print_table
from laurel_graph.torch_residual.module import parameter_groups

from .files import Tokenizer, documents, minilm_model, polarity
from .overhead import module_of
from .results import Results, Run, add_flags, chosen, column, mean_and_spread

VARIANTS = ("none", "rw", "lr", "rw+lr", "rw+lr+pa")
TASKS = ("polarity", "similarity")
EMBEDDING, WIDTH, BATCH = "461", 384, 16


def encoder(variant: str, rank: int, seed: int) -> nn.Module:
    """Returns the encoder, rewritten unless *variant* is none; ``(ids, mask)`` to embeddings ``(N, 384)``."""
    if variant == "none":
        return module_of(minilm_model(), EMBEDDING).requires_grad_(False)
    with tempfile.TemporaryDirectory() as folder:
        config = lg.LaurelConfig(variant=variant, rank=rank, seed=seed)
        file = lg.transform(minilm_model(), config, output=Path(folder) / "model.onnx").model
        return module_of(file, EMBEDDING)


class Classifier(nn.Module):
    """The encoder under a linear head."""

    def __init__(self, trunk: nn.Module, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk, self.head = trunk, nn.Linear(WIDTH, 2)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Returns the logits."""
        return self.head(self.trunk(ids, mask))  # type: ignore[no-any-return]


class Texts:
    """Tokenised texts, each without padding, so that a batch is as long as its own longest text."""

    def __init__(self, texts: list[str], longest: int) -> None:
        tokens = Tokenizer()(texts, longest)
        lengths = tokens["attention_mask"].sum(1)
        self._rows = [torch.from_numpy(ids[:n]) for ids, n in zip(tokens["input_ids"], lengths, strict=True)]

    def batch(self, indices: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns ``ids`` and ``mask`` of some texts, ``(N, T)``."""
        ids = nn.utils.rnn.pad_sequence([self._rows[i] for i in indices], batch_first=True)
        return ids, (ids > 0).long()

    def by_length(self, indices: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Returns the indices in batches of :data:`BATCH` texts of like length."""
        order = sorted(indices, key=lambda i: len(self._rows[i]))
        return [np.array(order[start : start + BATCH]) for start in range(0, len(order), BATCH)]


def folds(count: int, parts: int, seed: int) -> list[NDArray[np.int64]]:
    """Returns *parts* disjoint sets of indices that make up ``range(count)``."""
    return np.array_split(np.random.default_rng(seed).permutation(count), parts)


def steps(model: nn.Module, args: argparse.Namespace, count: int) -> Iterator[Callable[[Tensor], None]]:
    """Yields *count* functions that take a loss and make a step; the rates fall to zero in a straight line."""
    optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=args.lr)
    rates = [args.head_lr if group["weight_decay"] else args.lr for group in optimizer.param_groups]
    for number in range(count):
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 - number / count)

        def step(loss: Tensor) -> None:
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

        yield step


def classify(variant: str, args: argparse.Namespace, seed: int) -> float:
    """Returns the share of sentences that are right when they are held out."""
    sentences, labels = polarity()
    texts, classes, right = Texts(sentences, 64), torch.from_numpy(labels), 0
    for test in folds(len(sentences), args.folds, seed):
        model = Classifier(encoder(variant, args.rank, seed), seed)
        known, draw = np.setdiff1d(np.arange(len(sentences)), test), np.random.default_rng([seed, 1])
        plan: list[NDArray[np.int64]] = []
        for _ in range(args.epochs):
            batches = texts.by_length(draw.permutation(known))
            plan += [batches[i] for i in draw.permutation(len(batches))]
        for batch, step in zip(plan, steps(model, args, len(plan)), strict=True):
            step(F.cross_entropy(model(*texts.batch(batch)), classes[batch]))
        with torch.no_grad():
            for batch in texts.by_length(test):
                right += int((model(*texts.batch(batch)).argmax(1) == classes[batch]).sum())
    return right / len(sentences)


def compare(variant: str, args: argparse.Namespace, seed: int) -> float:
    """Returns the correlation with people's scores over the pairs of which at least one document was held out."""
    documents_, scores = documents()
    texts, wanted, count = Texts(documents_, 96), torch.from_numpy(scores), len(documents_)
    said, truth = [], []
    for test in folds(count, args.folds, seed):
        model = encoder(variant, args.rank, seed)
        known, draw = np.setdiff1d(np.arange(count), test), np.random.default_rng([seed, 1])
        for step in steps(model, args, args.steps) if variant != "none" else ():
            batch = draw.choice(known, BATCH, replace=False)
            off = ~torch.eye(BATCH, dtype=torch.bool)
            cosines = similarities(model(*texts.batch(batch)))
            step(F.mse_loss(cosines[off], wanted[np.ix_(batch, batch)][off]))
        embeddings = torch.empty(count, WIDTH)
        with torch.no_grad():
            for batch in texts.by_length(np.arange(count)):
                embeddings[batch] = model(*texts.batch(batch))
        held_out = torch.zeros(count, dtype=torch.bool)
        held_out[test] = True
        tested = (held_out[:, None] | held_out).triu(1)
        said.append(similarities(embeddings)[tested])
        truth.append(wanted[tested])
    return float(torch.corrcoef(torch.stack([torch.cat(said), torch.cat(truth)]))[0, 1])


def similarities(embeddings: Tensor) -> Tensor:
    """Returns the cosine of every two embeddings, ``(N, N)``."""
    directions = F.normalize(embeddings, dim=1)
    return directions @ directions.T


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=4, help="of polarity")
    parser.add_argument("--steps", type=int, default=20, help="of similarity")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3, help="rate of the LAuReL parameters")
    parser.add_argument("--head-lr", type=float, default=1e-2, help="rate of the head of polarity")
    add_flags(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)

    def measure(task: str, variant: str, seed: int) -> Run:
        began = time.process_time()
        value = (classify if task == "polarity" else compare)(variant, args, seed)
        seconds = time.process_time() - began
        parameters = sum(p.numel() for p in encoder(variant, args.rank, 0).parameters() if p.requires_grad)
        return {"value": value, "parameters": parameters, "seconds": seconds}

    settings = chosen(args, "folds", "epochs", "steps", "rank", "lr", "head_lr") | {"experiment": "sentences"}
    plan = [{"task": task, "variant": variant} for task in args.tasks for variant in args.variants]
    table = [
        (
            *row.values(),
            str(len(runs)),
            f"{column(runs, 'parameters')[0]:,}",
            *mean_and_spread(column(runs, "value")),
            f"{statistics.fmean(column(runs, 'seconds')):.0f}",
        )
        for row, runs in Results.of(args).grid(plan, args.seeds, settings, measure)
    ]
    columns = ("task", "variant", "seeds", "new parameters", "held out: accuracy / Pearson", "± std", "seconds")
    print_table("MiniLM-L3; each seed has other folds and initial values", columns, table)


if __name__ == "__main__":
    main()
