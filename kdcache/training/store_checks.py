"""Check that a store suits this machine and this loss before a student trains from it."""

from __future__ import annotations

import numpy as np

from kdcache.data.beton import Beton
from kdcache.errors import CacheMismatchError
from kdcache.options import TrainOptions
from kdcache.progress import logger
from kdcache.reader.probe import PROBE_VIEWS, probe_ids, probe_pixels
from kdcache.store.codecs.dense import Dense
from kdcache.store.codecs.fidelity import MAX_ANGLE_DEGREES, NORM_RATIOS
from kdcache.store.logit_store import LogitStore
from kdcache.training.losses.fidelity import fidelity_of
from kdcache.training.losses.settings import LossSettings
from kdcache.training.losses.user_loss import UserLoss


def check_pixels(beton: Beton, store: LogitStore, options: TrainOptions) -> None:
    """Check that this machine decodes the same pixels as the teacher saw, on a few views.

    Raises:
        CacheMismatchError: if pixels differ, unless `options.pixels` is "warn".
    """
    is_other_data = store.manifest.data_fingerprint != beton.manifest.data_fingerprint
    if is_other_data or not len(store.pixel_probe):
        return  # the loader reports other data
    probed = probe_ids(np.arange(store.manifest.samples))
    is_here = np.isin(probed, beton.sample_ids)
    if not is_here.any():
        logger.warning(
            "%s holds none of the %d samples whose pixels %s can check, so it is unknown whether "
            "this machine decodes the same pixels as the teacher saw",
            beton.path,
            len(probed),
            store.path,
        )
        return
    found = probe_pixels(
        beton, store.manifest.views, sample_ids=probed[is_here], num_workers=options.num_workers
    )
    wanted = store.pixel_probe[np.repeat(is_here, len(PROBE_VIEWS))]
    differ = int((found != wanted).any(axis=1).sum())
    if not differ:
        return
    message = (
        f"{differ} of {len(found)} probed views are decoded to other pixels than the teacher of "
        f"{store.path} saw, expected none: this machine has another build of "
        "libjpeg-turbo"
    )
    if options.pixels == "warn":
        logger.warning("%s", message)
        return
    raise CacheMismatchError(
        f"{message}. Run kdcache build-logits --overwrite here, or continue with --pixels warn"
    )


def check_codec(store: LogitStore, loss: LossSettings) -> None:
    """Warn if the store's codec distorts the gradient of this loss, or refuse unsuitable rows."""
    if store.codec.is_exact or isinstance(store.codec, Dense):
        return
    loss.require_codec(store.codec, store.path)
    if isinstance(loss.method, UserLoss):
        logger.warning(
            "%s is stored as %s; its effect on the gradient of --loss %s is not measured",
            store.path,
            store.codec,
            loss.method,
        )
        return
    found = fidelity_of(store, loss)
    if not found.is_accepted:
        logger.warning(
            "%s is stored as %s, which for %s turns the distillation gradient by %.1f degrees "
            "and scales it by %.2f, expected at most %g degrees and %g to %g. Use another "
            "--temperature, or build a store with --codec dense",
            store.path,
            store.codec,
            loss,
            found.angle_degrees,
            found.norm_ratio,
            MAX_ANGLE_DEGREES,
            *NORM_RATIOS,
        )
