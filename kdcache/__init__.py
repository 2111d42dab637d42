"""kdcache: run the teacher once; distil students from its cached logits on pruned data.

    import kdcache as kd

    data = kd.pack("photos/", workspace="ws")
    store = kd.build_logits("ws", teacher="resnet50", views=8)
    subset = kd.select("ws", method="medium", keep=0.7)
    with kd.DistillLoader(data.train, store, subset, batch_size=256) as loader:
        ...
    result = kd.train("ws", model="resnet18")

Every command of the command line is a function here, with the same options as keyword arguments.
Names load when they are first used: `import kdcache` loads neither torch nor numpy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0"

if TYPE_CHECKING:  # for type checkers; `__getattr__` below loads the same names when they are used
    from kdcache import errors, models, scores
    from kdcache import options as _options
    from kdcache.checkup.doctor import doctor as _doctor
    from kdcache.data.beton import Beton, open_beton
    from kdcache.data.pack import pack as _pack
    from kdcache.data.policy import Policy
    from kdcache.data.source import Source
    from kdcache.library import keyword_function as _function
    from kdcache.loader.batch import Batch
    from kdcache.loader.distill import DistillLoader
    from kdcache.models.registry import list_models, make_model
    from kdcache.overview.cards import show as _show
    from kdcache.pipeline_runs.runner import run as _run
    from kdcache.selection import methods
    from kdcache.selection.context import Group, SelectionContext
    from kdcache.selection.score import score as _score
    from kdcache.selection.select import select_subset as _select
    from kdcache.selection.subset import Subset
    from kdcache.store import codecs
    from kdcache.store.build.build import build_and_open as _build_logits
    from kdcache.store.build.verify import verify as _verify
    from kdcache.store.codecs.codec import Codec
    from kdcache.store.logit_store import LogitStore
    from kdcache.store.upkeep.export import export as _export
    from kdcache.store.upkeep.merge import merge as _merge
    from kdcache.studies.study import study as _study
    from kdcache.training import losses
    from kdcache.training.evaluate import evaluate as _evaluate
    from kdcache.training.losses.loss import distillation_loss
    from kdcache.training.losses.user_loss import LossContext
    from kdcache.training.train import train as _train
    from kdcache.training.train_teacher import train_teacher as _train_teacher

    pack = _function(_options.PackOptions, _pack)
    train_teacher = _function(_options.TrainTeacherOptions, _train_teacher)
    build_logits = _function(_options.BuildLogitsOptions, _build_logits)
    score = _function(_options.ScoreOptions, _score)
    select = _function(_options.SelectOptions, _select)
    train = _function(_options.TrainOptions, _train)
    evaluate = _function(_options.EvaluateOptions, _evaluate)
    verify = _function(_options.VerifyOptions, _verify)
    merge = _function(_options.MergeOptions, _merge)
    export = _function(_options.ExportOptions, _export)
    show = _function(_options.ShowOptions, _show)
    run = _function(_options.RunOptions, _run)
    study = _function(_options.StudyOptions, _study)
    doctor = _function(_options.DoctorOptions, _doctor)

__all__ = [
    "Batch",
    "Beton",
    "Codec",
    "DistillLoader",
    "Group",
    "LogitStore",
    "LossContext",
    "Policy",
    "SelectionContext",
    "Source",
    "Subset",
    "build_logits",
    "codecs",
    "distillation_loss",
    "doctor",
    "errors",
    "evaluate",
    "export",
    "list_models",
    "losses",
    "make_model",
    "merge",
    "methods",
    "models",
    "open_beton",
    "pack",
    "run",
    "score",
    "scores",
    "select",
    "show",
    "study",
    "train",
    "train_teacher",
    "verify",
]

_CLASSES = {
    "Batch": "kdcache.loader.batch",
    "Beton": "kdcache.data.beton",
    "Codec": "kdcache.store.codecs.codec",
    "DistillLoader": "kdcache.loader.distill",
    "Group": "kdcache.selection.context",
    "LogitStore": "kdcache.store.logit_store",
    "LossContext": "kdcache.training.losses.user_loss",
    "Policy": "kdcache.data.policy",
    "SelectionContext": "kdcache.selection.context",
    "Source": "kdcache.data.source",
    "Subset": "kdcache.selection.subset",
    "distillation_loss": "kdcache.training.losses.loss",
    "list_models": "kdcache.models.registry",
    "make_model": "kdcache.models.registry",
    "open_beton": "kdcache.data.beton",
}
"""Name -> the module that defines it."""

_MODULES = {
    "codecs": "kdcache.store.codecs",
    "errors": "kdcache.errors",
    "losses": "kdcache.training.losses",
    "methods": "kdcache.selection.methods",
    "models": "kdcache.models",
    "scores": "kdcache.scores",
}

_OPENED = {
    "build_logits": "kdcache.store.build.build:build_and_open",
    "select": "kdcache.selection.select:select_subset",
}
"""Functions that return what the command made, where the command line prints its figures."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used."""
    if name in _MODULES:
        module = import_module(_MODULES[name])
        if hasattr(module, "__path__"):  # a package, whose registry is what users look for
            import_module(f"{_MODULES[name]}.registry")
        return module
    if name in _CLASSES:
        found: object = getattr(import_module(_CLASSES[name]), name)
    elif name in __all__:
        from kdcache.commands import COMMANDS
        from kdcache.library import public

        options, place = COMMANDS[name.replace("_", "-")]
        found = public(name, options, _OPENED.get(name, place), place)
    else:
        raise AttributeError(f"module 'kdcache' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return [*__all__, "__version__"]
