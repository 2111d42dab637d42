"""Difficulty scores and statistics of a prediction.

All functions take logits (B, C) and labels (B,) and return (B,). A higher score means a harder
sample; the statistics in `STATS` have no direction.

Scores are computed in float64 and rounded to float32 once. In float32, 1 - 1e-9 equals 1, so many
samples with a confident prediction would have the score 0.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return -log p(label), (B,) in nats, >= 0."""
    return functional.cross_entropy(logits_BC.double(), labels_B, reduction="none").float()


def entropy(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001  (all scores share a signature)
    """Return the entropy of the probabilities, (B,) in nats, in [0, log C]."""
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
    """Return the L2 distance of the probabilities from the one-hot label, (B,) in [0, sqrt 2].

    References:
        Paul, Ganguli, Dziugaite 2021, "Deep Learning on a Data Diet". The paper averages over
        several models early in training; kdcache uses one trained teacher on the clean view.
    """
    one_hot_BC = functional.one_hot(labels_B, logits_BC.shape[1])
    return torch.linalg.vector_norm(logits_BC.double().softmax(dim=1) - one_hot_BC, dim=1).float()


def correct(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Return whether the largest logit is that of the label, (B,) bool."""
    return logits_BC.argmax(dim=1) == labels_B


def logit_std(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return the standard deviation of each row, (B,), with the divisor C - 1 as in MDSLR."""
    if logits_BC.shape[1] == 1:
        return torch.zeros(len(logits_BC), device=logits_BC.device)
    return logits_BC.std(dim=1)


def logsumexp(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return log sum exp of each row, (B,)."""
    return logits_BC.logsumexp(dim=1)


def top1(logits_BC: Tensor, labels_B: Tensor) -> Tensor:  # noqa: ARG001
    """Return the predicted class, (B,) int64."""
    return logits_BC.argmax(dim=1)


STATS = {"correct": correct, "logit_std": logit_std, "logsumexp": logsumexp, "top1": top1}
"""Name -> statistic. A build stores all of them."""
