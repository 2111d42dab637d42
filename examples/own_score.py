"""A difficulty score of your own, used by name: `--score own_score:margin_to_runner_up`.

A score is a function of a batch of logits (B, C) and labels (B,). It returns one number per sample,
higher for harder ones. `kdcache score` computes it from the stored logits, without the teacher.
"""

import tempfile

import torch
from torch import Tensor

import kdcache as kd


def margin_to_runner_up(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the highest logit of another class minus the label's logit."""
    label_logits = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return others.max(dim=1).values - label_logits[:, 0]


def main() -> None:
    """Compute the score from a store, and keep the easiest and the hardest samples by it."""
    with tempfile.TemporaryDirectory() as workspace:
        kd.pack("digits", workspace=workspace)
        kd.train_teacher(workspace, model="resnet8", epochs=1)
        kd.build_logits(workspace, teacher="resnet8", views=0)
        name = "own_score:margin_to_runner_up"
        print(kd.score(name, workspace=workspace))
        for method in ("easy", "hard"):
            subset = kd.select(workspace, method=method, keep=0.1, score=name)
            print(f"{method}: {len(subset)} samples, the first is {subset.sample_ids[0]}")


if __name__ == "__main__":
    main()
