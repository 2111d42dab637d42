"""Convert what `DistillLoader` accepts for an argument to one type, or raise a ConfigError."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import torch

from kdcache.data.beton import Beton, open_beton
from kdcache.data.policy import Policy
from kdcache.data.views import Views, default_views
from kdcache.errors import ConfigError
from kdcache.options import Order
from kdcache.store.logit_store import LogitStore


def as_beton(beton: object) -> Beton:
    """Return a beton; a path is opened."""
    if isinstance(beton, (str, Path)):
        return open_beton(beton)
    if not isinstance(beton, Beton):
        raise wrong_type("beton", beton, "a Beton, or the path of one")
    return beton


def as_store(store: object) -> LogitStore | None:
    """Return a store; a path or URL is opened."""
    if isinstance(store, (str, Path)):
        return LogitStore.open(store)
    if store is not None and not isinstance(store, LogitStore):
        raise wrong_type("store", store, "a LogitStore, the path or URL of one, or None")
    return store


def as_device(device: object) -> torch.device:
    """Return a device of torch."""
    rule = "a device of torch, such as cpu, cuda or cuda:1"
    if not isinstance(device, (str, torch.device)):
        raise wrong_type("device", device, rule)
    try:
        return torch.device(device)
    except RuntimeError as error:  # its message lists all devices of torch
        raise ConfigError(parameter="device", value=device, rule=rule) from error


def as_order(order: object) -> Order:
    """Return the name of an order."""
    known = get_args(Order)
    if order not in known:
        raise ConfigError(parameter="order", value=str(order), rule=f"one of {', '.join(known)}")
    chosen: Order = order  # type: ignore[assignment]  # it is one of them
    return chosen


def as_views(views: object, beton: Beton) -> Views:
    """Return the views that a loader without a store shows."""
    default = default_views(beton.manifest)
    if isinstance(views, str):
        views = Policy.parse(views)
    if isinstance(views, Policy):
        return default._replace(policy=views)
    if views is not None and not isinstance(views, Views):
        raise wrong_type("views", views, "Views, a Policy, or the text of a policy")
    return views or default


def wrong_type(name: str, value: object, rule: str) -> ConfigError:
    """Return the error for an argument of a type that does not fit.

    Args:
        name: name of the argument.
        value: what was given for it.
        rule: what was expected.
    """
    kind = type(value).__name__
    return ConfigError(f"{name} is {kind}, expected {rule}", parameter=name, value=value)
