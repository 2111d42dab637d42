"""Measure how a store's codec changes the gradient of a given loss.

`kdcache.store.codecs.fidelity` measures this for plain KD, to choose a codec. Another loss may
depend on the rows in another way.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from kdcache.loader.staging import Rows
from kdcache.rng import generator
from kdcache.store.codecs.choice import choice_sample_ids, held_out_rows
from kdcache.store.codecs.dense import Float32
from kdcache.store.codecs.fidelity import Fidelity, angle_and_ratio, assumed_student
from kdcache.store.logit_store import LogitStore
from kdcache.training.losses.hinton import divergence
from kdcache.training.losses.loss import Loss
from kdcache.training.losses.settings import LossSettings

_BATCH_SIZE = 128
"""Samples per loss call; it matters for losses that compare samples with each other."""


def fidelity_of(store: LogitStore, settings: LossSettings) -> Fidelity:
    """Measure the codec of a store's augmented views on its clean logits, for a loss.

    Returns:
        The comparison of two gradients of the distillation loss with respect to an assumed
        student's logits: one with decoded rows, the other with the clean view's logits. `kl` is
        the divergence of their probabilities at the loss's temperature.
    """
    constants_C = torch.from_numpy(store.reshaping_constants()) if settings.reshape else None
    loss = Loss(settings, constants_C)
    manifest, codec, temperature = store.manifest, store.codec, settings.temperature
    ids = choice_sample_ids(manifest.samples, manifest.classes)
    ids = ids[held_out_rows(len(ids))]
    rng = generator(0, "assumed-student")
    products, kl = np.zeros(3), 0.0
    for batch_ids in np.array_split(ids, -(-len(ids) // _BATCH_SIZE)):
        logits = store.logits(batch_ids, 0)
        student = torch.from_numpy(assumed_student(logits.astype(np.float64), rng))
        labels = torch.from_numpy(store.labels[batch_ids])
        # These rows are not stored, so any distinct numbers serve as view keys.
        encoded = codec.encode(logits, view_keys=batch_ids, view=0)
        both_rows = (
            Rows(torch.from_numpy(logits), Float32(manifest.classes)),
            Rows(torch.from_numpy(encoded), codec),
        )
        exact, decoded = (_gradient(loss, student, rows, labels) for rows in both_rows)
        products += (exact @ exact).item(), (exact @ decoded).item(), (decoded @ decoded).item()
        soft = ((rows.logits(temperature) / temperature).log_softmax(dim=1) for rows in both_rows)
        kl += divergence(*soft).sum().item()
    return Fidelity(temperature, *angle_and_ratio(*products), kl / len(ids))


def _gradient(loss: Loss, student: Tensor, rows: Rows, labels: Tensor) -> Tensor:
    """Return the gradient of the distillation loss at the student's logits, flattened, (B C,)."""
    student = student.clone().requires_grad_()
    distillation = loss(student, rows, labels, progress=1.0).distillation
    assert distillation is not None  # noqa: S101  (rows are given)
    (gradient,) = torch.autograd.grad(distillation, student)
    return gradient.flatten()
