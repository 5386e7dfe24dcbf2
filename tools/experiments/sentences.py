"""A sentence encoder on two small real tasks: polarity of 200 sentences, similarity of 50 documents.

Both are cross-validated: polarity over ten folds of sentences with a new linear head, similarity over five folds of
documents: trained on the pairs among the other documents, tested on the pairs with at least one held-out document.
"none" is the frozen encoder (with a head for polarity), which is what the variants are compared with.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import laurel_graph as lg
from laurel_graph.module import parameter_groups
from laurel_graph.tools.console import note, print_table

from .files import Tokenizer, documents, minilm_model, polarity
from .overhead import module_of
from .results import Results, add_flags, spread

VARIANTS = ("none", "rw", "lr", "rw+lr", "rw+lr+pa")
EMBEDDING, WIDTH = "461", 384


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


def folds(count: int, parts: int, seed: int) -> list[NDArray[np.int64]]:
    """Returns *parts* disjoint sets of indices that make up ``range(count)``."""
    return np.array_split(np.random.default_rng(seed).permutation(count), parts)


def classify(variant: str, args: argparse.Namespace, seed: int) -> float:
    """Returns the share of sentences that are right when they are held out."""
    texts, labels = polarity()
    tokens = {name: torch.from_numpy(array) for name, array in Tokenizer()(texts, 64).items()}
    ids, mask, classes = tokens["input_ids"], tokens["attention_mask"], torch.from_numpy(labels)
    right = 0
    for test in folds(len(texts), args.folds, seed):
        model = Classifier(encoder(variant, args.rank, seed), seed)
        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=0.1), lr=args.lr)
        known = np.setdiff1d(np.arange(len(texts)), test)
        draw = np.random.default_rng([seed, 1])
        for _ in range(args.epochs):
            for batch in np.array_split(draw.permutation(known), len(known) // 16):
                optimizer.zero_grad()
                F.cross_entropy(model(ids[batch], mask[batch]), classes[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            right += int((model(ids[test], mask[test]).argmax(1) == classes[test]).sum())
    return right / len(texts)


def compare(variant: str, args: argparse.Namespace, seed: int) -> float:
    """Returns the correlation with people's scores over the held-out pairs of documents."""
    texts, scores = documents()
    tokens = {name: torch.from_numpy(array) for name, array in Tokenizer()(texts, 128).items()}
    ids, mask, wanted = tokens["input_ids"], tokens["attention_mask"], torch.from_numpy(scores)
    said: list[Tensor] = []
    truth: list[Tensor] = []
    for test in folds(len(texts), 5, seed):
        model = encoder(variant, args.rank, seed)
        known = np.setdiff1d(np.arange(len(texts)), test)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=args.lr, weight_decay=0.0) if trained else None
        for _ in range(args.steps if optimizer else 0):
            assert optimizer is not None
            optimizer.zero_grad()
            cosines, people = similarities(model, ids[known], mask[known]), wanted[np.ix_(known, known)]
            off = ~torch.eye(len(known), dtype=torch.bool)
            F.mse_loss(cosines[off], people[off]).backward()
            optimizer.step()
        with torch.no_grad():
            cosines = similarities(model, ids, mask)
        held_out = torch.zeros(len(texts), dtype=torch.bool)
        held_out[test] = True
        tested = (held_out[:, None] | held_out).triu(1)
        said.append(cosines[tested])
        truth.append(wanted[tested])
    return float(torch.corrcoef(torch.stack([torch.cat(said), torch.cat(truth)]))[0, 1])


def similarities(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """Returns the cosine of every two documents, ``(N, N)``."""
    directions = F.normalize(model(ids, mask), dim=1)
    return directions @ directions.T


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=("polarity", "similarity"), default=("polarity", "similarity"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    add_flags(parser)
    args = parser.parse_args()
    results, rows = Results.of(args), []
    for task in args.tasks:
        for variant in args.variants:
            runs = [measured(task, variant, seed, results, args) for seed in range(args.seeds)]
            done = [run for run in runs if run is not None]
            if not done:
                continue
            values = [run["value"] for run in done]
            seconds = statistics.fmean(run["seconds"] for run in done)
            cells = (
                f"{done[0]['parameters']:,}",
                f"{statistics.fmean(values):.4f}",
                f"{spread(values):.4f}",
                f"{seconds:.0f}",
            )
            rows.append((task, variant, str(len(done)), *cells))
    columns = ("task", "variant", "seeds", "new parameters", "held out: accuracy / Pearson", "± std", "seconds")
    print_table("MiniLM-L3; each seed has other folds and initial values", columns, rows)


def measured(task: str, variant: str, seed: int, results: Results, args: argparse.Namespace) -> dict[str, float] | None:
    """Returns the held-out figure, the new parameters and the processor seconds of one run, or ``None``."""

    def run() -> dict[str, float]:
        began = time.process_time()
        value = (classify if task == "polarity" else compare)(variant, args, seed)
        seconds = time.process_time() - began
        note(f"{task}, {variant}, seed {seed}: {value:.4f}")
        parameters = sum(p.numel() for p in encoder(variant, args.rank, 0).parameters() if p.requires_grad)
        return {"value": value, "parameters": parameters, "seconds": seconds}

    names = ("folds", "epochs", "steps", "rank", "lr")
    settings = {"experiment": "sentences", "task": task, "variant": variant, "seed": seed}
    return results.run(settings | {name: getattr(args, name) for name in names}, run)


if __name__ == "__main__":
    main()
