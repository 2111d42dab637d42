"""Find the source names of samples in a workspace; see `kdcache.data.names`."""

from __future__ import annotations

from kdcache.data.beton_manifest import BetonManifest
from kdcache.data.names import load_names
from kdcache.errors import CacheMismatchError, DatasetError
from kdcache.progress import logger
from kdcache.workspace import Workspace


def sample_names(workspace: Workspace, data_fingerprint: str) -> list[str]:
    """Return the name of every training image in its source, by sample id.

    Args:
        workspace: its training beton holds the names.
        data_fingerprint: fingerprint of the data that the names are used with.

    Raises:
        DatasetError: if nothing is packed, or the names are damaged.
        CacheMismatchError: if other data are packed.
    """
    path = workspace.require_beton()
    manifest = BetonManifest.load(path)
    if manifest.fingerprint != data_fingerprint:
        raise CacheMismatchError(
            f"{path} holds other data than those whose names are needed: fingerprint is "
            f"{manifest.fingerprint[:12]}, expected {data_fingerprint[:12]}"
        )
    return load_names(path, manifest)


def sample_names_if_packed(workspace: Workspace, data_fingerprint: str) -> list[str] | None:
    """Return `sample_names`, or None with a warning if the images are not packed here.

    A store and its subsets can be used on a machine that has no images.
    """
    try:
        return sample_names(workspace, data_fingerprint)
    except (CacheMismatchError, DatasetError) as error:
        logger.warning("the names of the images are left out: %s", error)
        return None
