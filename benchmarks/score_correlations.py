"""Print rank correlations between the scores of a store, and the overlap of their selections.

python benchmarks/score_correlations.py kdcache-workspace/stores/resnet50.zarr
"""

from __future__ import annotations

import argparse
from itertools import combinations
from pathlib import Path

import numpy as np
from measure import record
from scipy.stats import spearmanr

from kdcache.options import PruningOptions
from kdcache.selection.pruning import select_ids
from kdcache.store.logit_store import LogitStore

KEEP = 0.3


def main() -> None:
    """Print the table; with --record, write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("store", type=Path)
    parser.add_argument(
        "--record", metavar="NAME", help="write to benchmarks/results/ under this name"
    )
    arguments = parser.parse_args()
    store = LogitStore.open(arguments.store)
    scores = {name: store.scores[name] for name in store.scores}
    kept = {
        name: select_ids(
            values,
            store.labels,
            PruningOptions(method="hard", keep=KEEP),
            num_classes=store.manifest.classes,
        )
        for name, values in scores.items()
    }
    correct = store.stats["correct"].mean()
    print(f"{len(store.labels):,} samples, the teacher is right on {100 * correct:.1f} % of them")
    print(f"{'':40}{'Spearman':>10}{'shared by hard ' + str(KEEP):>20}")
    rows = {}
    for one, other in combinations(scores, 2):
        correlation = float(spearmanr(scores[one], scores[other]).statistic)
        shared = len(np.intersect1d(kept[one], kept[other])) / len(kept[one])
        rows[f"{one}, {other}"] = {"spearman": correlation, "shared": shared}
        print(f"{one + ', ' + other:40}{correlation:>10.3f}{shared:>20.3f}")
    if arguments.record:
        content = {"samples": len(store.labels), "teacher_correct": float(correct), "pairs": rows}
        path = record(f"score_correlations-{arguments.record}", content)
        print(f"\nrecorded in {path}")


if __name__ == "__main__":
    main()
