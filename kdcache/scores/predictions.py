"""Difficulty scores and statistics that are functions of logits and labels.

Every score has one direction: higher is harder. `STATS` have no direction.

Scores are computed in float64 and rounded to float32 once. In float32, 1 - 1e-9 equals 1, so all
samples of which the teacher is certain would have the score 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return -log p of the label, (B,) in nats, >= 0."""
    return functional.cross_entropy(logits_BC.double(), labels_B, reduction="none").float()


def entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001  (all scores share a signature)
    """Return the entropy of the prediction, (B,) in nats, in [0, log C]."""
    log_probs_BC = logits_BC.double().log_softmax(dim=1)
    return -(log_probs_BC.exp() * log_probs_BC).sum(dim=1).clamp(max=0).float()


def margin(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return 1 - (p1 - p2) for the two largest probabilities, (B,) in [0, 1]."""
    if logits_BC.shape[1] == 1:
        return torch.zeros(len(logits_BC), device=logits_BC.device)
    top_B2 = logits_BC.double().softmax(dim=1).topk(2, dim=1).values
    return (1 - (top_B2[:, 0] - top_B2[:, 1])).float()


def least_confidence(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return 1 - the largest probability, (B,) in [0, 1 - 1/C]."""
    return (1 - logits_BC.double().softmax(dim=1).amax(dim=1)).float()


def el2n(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the distance of the prediction from the one-hot label, (B,) in [0, sqrt 2].

    References:
        Paul, Ganguli, Dziugaite 2021, "Deep Learning on a Data Diet": there the mean over several
        models early in training, here one trained teacher on the clean view.
    """
    one_hot_BC = functional.one_hot(labels_B, logits_BC.shape[1])
    return torch.linalg.vector_norm(logits_BC.double().softmax(dim=1) - one_hot_BC, dim=1).float()


def correct(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return whether the largest logit is the label's, (B,) bool."""
    return logits_BC.argmax(dim=1) == labels_B


def logit_std(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return the standard deviation of each row, (B,), divisor C - 1 as in MDSLR."""
    if logits_BC.shape[1] == 1:
        return torch.zeros(len(logits_BC), device=logits_BC.device)
    return logits_BC.std(dim=1)


def logsumexp(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return the log of each row's partition sum, (B,)."""
    return logits_BC.logsumexp(dim=1)


def top1(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return the predicted class, (B,) int64."""
    return logits_BC.argmax(dim=1)


STATS = {"correct": correct, "logit_std": logit_std, "logsumexp": logsumexp, "top1": top1}
