"""`kdcache select`: choose samples by their scores and write a subset file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdcache.data.sample_names import sample_names, sample_names_if_packed
from kdcache.errors import CacheMismatchError, ConfigError
from kdcache.files import replace_atomically
from kdcache.identity import differences
from kdcache.options import SelectOptions, as_names
from kdcache.progress import logger
from kdcache.registry import user_code_digest
from kdcache.selection.compare import Comparison, compare
from kdcache.selection.context import SampleData
from kdcache.selection.mdslr import mdslr_quotas
from kdcache.selection.methods import METHODS
from kdcache.selection.provenance import Provenance
from kdcache.selection.pruning import require_finite, select_ids, select_per_group
from kdcache.selection.report import SelectReport
from kdcache.selection.score_files import write_scores
from kdcache.selection.score_source import find_scores, scores_identity
from kdcache.selection.subset import Subset
from kdcache.store.logit_store import LogitStore
from kdcache.workspace import Workspace, teacher_name

_MAX_SHOWN_CLASSES = 20


def select(options: SelectOptions) -> SelectReport:
    """Choose samples and write their ids to a subset file; see `select_subset`."""
    report = select_subset(options).report
    assert report is not None  # noqa: S101  (select_subset sets it)
    return report


def select_subset(options: SelectOptions) -> Subset:
    """Choose samples, write their ids, and return them with the figures in `report`.

    Raises:
        ConfigError: if nothing was built yet, a score is missing or not finite, or a file is at
            --export or --kept-files.
        DatasetError: if --kept-files is given and the images are not packed here.
        CacheMismatchError: if the file exists and was made otherwise, or scores or the other subset
            are of other data.
    """
    _require_free(options)
    workspace = Workspace(Path(options.workspace))
    store = LogitStore.open(workspace.require_store(options.teacher, options.store))
    manifest = store.manifest
    method_options: Any = _method_options(options)
    provenance: Provenance = {
        "method": options.method,
        "keep": options.keep,
        "score": options.score if options.scores is None else None,
        "balance": options.balance,
        "seed": options.seed,
        "of": manifest.samples,
        "data_fingerprint": manifest.data_fingerprint,
        "teacher": manifest.teacher,
        "teacher_digest": manifest.teacher_digest,
        **method_options,
        **_method_identity(options),
        **scores_identity(options, workspace, store),
    }
    other = None if options.compare is None else _load_other(workspace, str(options.compare), store)
    kept_names = None  # loaded before anything is written, because they may be missing
    if options.kept_files is not None:
        kept_names = sample_names(workspace, manifest.data_fingerprint)
    path = Path(options.out or workspace.subset(subset_name(options)))
    by = f" by {options.scores or options.score}" if options.reads_scores else ""
    logger.info("%s of %s%s", options.method, store.path, by)
    scores: npt.NDArray[Any] | None = None
    if path.exists() and not options.overwrite:
        subset = _reuse(path, provenance)
    else:
        scores = find_scores(options, workspace, store)
        subset = Subset(_choose(options, store, scores), provenance)
        subset.save(path)
    comparison = None
    if other is not None:
        comparison = compare(subset, other, store.labels, manifest.classes)
    _report(subset, comparison, store.labels, manifest.class_names)
    if options.export is not None:
        # A .npy file has no place for names.
        has_names = Path(options.export).suffix != ".npy"
        write_scores(
            Path(options.export),
            find_scores(options, workspace, store) if scores is None else scores,
            store.labels,
            subset.sample_ids,
            data_fingerprint=manifest.data_fingerprint,
            names=sample_names_if_packed(workspace, manifest.data_fingerprint)
            if has_names
            else None,
        )
        logger.info("scores -> %s", options.export)
    if kept_names is not None:
        _write_kept_files(Path(str(options.kept_files)), kept_names, subset)
    workspace.remember("subset", path)
    report = SelectReport(
        method=options.method,
        keep=options.keep,
        kept=len(subset),
        of=manifest.samples,
        path=path.resolve(),
        compare=None if comparison is None else comparison.report(),
    )
    return replace(subset, report=report)


def subset_name(options: SelectOptions) -> str:
    """Return the name METHOD-KEEP[-SCORE][-BALANCE][-OPTION...][-sSEED] without defaults."""
    parts = [options.method.rpartition(":")[2], f"{options.keep:g}"]
    defaults = SelectOptions()
    if options.scores is not None:
        parts.append(Path(options.scores).stem)
    elif options.score != defaults.score:
        parts.append(options.score.rpartition(":")[2])
    if options.balance != defaults.balance:
        parts.append(options.balance)
    if others := as_names(options.average_with):
        parts += ["with", *map(teacher_name, others)]
    parts += [
        f"{name.replace('_per_class', '')}{value:g}"
        for name, value in _method_options(options).items()
    ]
    if options.parity is not None:
        parts.append(options.parity)
    if options.seed != defaults.seed:
        parts.append(f"s{options.seed}")
    return "-".join(parts)


def _write_kept_files(path: Path, names: list[str], subset: Subset) -> None:
    """Write the name of each kept image, one a line, in the order of the sample ids.

    Raises:
        ConfigError: if a name has a line break.
    """
    kept = [names[sample_id] for sample_id in subset.sample_ids.tolist()]
    if odd := next((name for name in kept if "\n" in name or "\r" in name), None):
        raise ConfigError(
            parameter="kept_files",
            value=path,
            problem=f"the name {odd!r} has a line break, expected one name a line",
            remedy="Use --export NAME.parquet",
        )
    with replace_atomically(path) as partial:
        partial.write_text("".join(f"{name}\n" for name in kept), encoding="utf-8")
    logger.info("names of %s kept images -> %s", f"{len(kept):,}", path)


def _require_free(options: SelectOptions) -> None:
    """Raise a ConfigError if --export or --kept-files would replace a file that must be kept."""
    kept_files = options.kept_files
    if kept_files is not None and Path(kept_files).exists() and not options.overwrite:
        raise ConfigError(
            parameter="kept_files",
            value=kept_files,
            problem="it exists, expected a new file",
            remedy="Use --overwrite to replace it",
        )
    if options.export is None or not Path(options.export).exists():
        return
    scores = None if options.scores is None else Path(options.scores)
    if scores is not None and scores.exists() and scores.samefile(options.export):
        raise ConfigError(
            f"--export is {options.export}, the file of --scores, expected another file, because "
            "it would be replaced",
            parameter="export",
            value=options.export,
        )
    if not options.overwrite:
        raise ConfigError(
            parameter="export",
            value=options.export,
            problem="it exists, expected a new file",
            remedy="Use --overwrite to replace it",
        )


def _method_options(options: SelectOptions) -> dict[str, float]:
    """Return the options of the method that differ from their defaults."""
    names = ("min_per_class", "start", "cut", "peak", "concentration")
    given = {name: getattr(options, name) for name in names}
    return {name: value for name, value in given.items() if value != getattr(SelectOptions, name)}


def _method_identity(options: SelectOptions) -> Provenance:
    """Return the digest of a user's method, which changes with its code."""
    if options.method in METHODS:
        return {}
    METHODS.load(options.method)
    return {"method_code_digest": user_code_digest(options.method)}


def _choose(
    options: SelectOptions, store: LogitStore, scores: npt.NDArray[Any]
) -> npt.NDArray[np.int64]:
    classes = store.manifest.classes
    if options.parity == "mdslr":
        require_finite(scores)
        sizes = np.bincount(store.labels, minlength=classes).tolist()
        quotas = mdslr_quotas(sizes, options.keep)
        return select_per_group(scores, store.labels, options, np.arange(classes), quotas)
    correct = store.stats["correct"] if options.method == "class-adaptive" else None
    data = SampleData(store.scores, store.stats, store.features)
    return select_ids(
        scores, store.labels, options, num_classes=classes, correct=correct, data=data
    )


def _reuse(path: Path, provenance: Provenance) -> Subset:
    subset = Subset.load(path)
    if differ := differences(
        subset.provenance, dict.fromkeys(subset.provenance) | dict(provenance)
    ):
        raise CacheMismatchError(
            f"{path} was made with other settings: {differ}. "
            "Use --overwrite to replace it, or --out for another file"
        )
    logger.info("up to date: %s", path)
    return subset


def _load_other(workspace: Workspace, name: str, store: LogitStore) -> Subset:
    path = workspace.require_subset(name)
    if path is None:  # full
        return Subset(np.arange(store.manifest.samples))
    other = Subset.load_of(path, store.manifest.data_fingerprint)
    if other.sample_ids[-1] >= store.manifest.samples:
        raise CacheMismatchError(
            f"{path} holds sample {other.sample_ids[-1]}, expected ids below "
            f"{store.manifest.samples:,}, the samples of {store.path}. Run kdcache select again"
        )
    return other


def _report(
    subset: Subset,
    comparison: Comparison | None,
    labels: npt.NDArray[np.int64],
    class_names: list[str],
) -> None:
    kept = np.bincount(labels[subset.sample_ids], minlength=len(class_names))
    sizes = np.bincount(labels, minlength=len(class_names))
    others = [""] * len(class_names)
    if comparison is not None:
        others = [f", the other subset {count:,}" for count in comparison.other_kept]
        logger.info(
            "%s samples are also in the other subset; by chance it would be %s",
            f"{comparison.overlap:,}",
            f"{comparison.by_chance:,.0f}",
        )
    rows = list(zip(class_names, kept, sizes, others, strict=True))
    for name, count, size, other in rows[:_MAX_SHOWN_CLASSES]:
        logger.info("  %-20s %7s of %s%s", name, f"{count:,}", f"{size:,}", other)
    if len(class_names) > _MAX_SHOWN_CLASSES:
        logger.info(
            "  and %d more classes; each class keeps %s to %s samples",
            len(class_names) - _MAX_SHOWN_CLASSES,
            f"{kept.min():,}",
            f"{kept.max():,}",
        )
    empty = [name for name, count, size, _ in rows if size and not count]
    if empty:
        logger.warning(
            "%d classes keep no sample (the first is %s), so students cannot learn them. "
            "Use --min-per-class 1 to keep at least one of each",
            len(empty),
            empty[0],
        )
