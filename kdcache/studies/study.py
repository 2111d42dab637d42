"""`kdcache study`: a grid of students, trained in the background, and the table of its results."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from kdcache.errors import ConfigError
from kdcache.files import read_json, sweep_partials, write_json
from kdcache.options import StudyOptions
from kdcache.progress import logger
from kdcache.store.build.plan import Part
from kdcache.studies.cells import Cell
from kdcache.studies.checking import check_cells, check_teachers
from kdcache.studies.grid import Block, Grid, find_grid, read_grid
from kdcache.studies.needs import Need, Plan, in_order
from kdcache.studies.plots import draw, require_matplotlib
from kdcache.studies.processes import ProcessResult
from kdcache.studies.provenance import package_about, package_digest
from kdcache.studies.report import StudyResult
from kdcache.studies.results import Results
from kdcache.studies.rows import (
    now,
    outcome_of_cell,
    outcome_of_teacher,
    row_of_cell,
    row_of_teacher,
)
from kdcache.studies.runner import Runner, Work
from kdcache.studies.tables import show_table

_SHOWN_CELLS = 20


def study(options: StudyOptions) -> StudyResult:
    """Train the students of a grid that the results lack, or print a table of the results.

    Raises:
        ConfigError: if a value of the grid or an option is unknown or outside its range; before
            anything runs.
        CacheCorruptError: if the results cannot be read.
        TrainingError: if the disk is full.
    """
    part = Part.parse(options.part, {})
    grid = read_grid(find_grid(str(options.grid)), tune_fraction=options.tune_fraction)
    chosen = grid.only(options.block)
    root = Path(options.workspace) / "studies"
    results = Results(Path(options.results) if options.results else root / f"{grid.name}.parquet")
    if options.table is not None:
        if options.plot is not None:
            require_matplotlib()
        table, shown = show_table(results, chosen, options)
        if options.plot is not None:
            draw(table, Path(options.plot), rows=options.table[0], columns=options.table[1])
            shown = replace(shown, plot=Path(options.plot).resolve())
        return shown
    plan = Plan(
        root.resolve(),
        sources=_sources(options.source, grid),
        teachers=grid.teachers,
        num_views=_num_views(grid.cells),
    )
    check_teachers(grid.teachers)
    check_cells(grid.cells, plan)
    cells = chosen.cells[part.index :: part.count]
    rows = results.rows()
    closed = {row["cell"] for row in rows if row["status"] == "ok" or not options.retry}
    left = [cell for cell in cells if cell.id not in closed]
    if options.dry_run:
        for cell in left[:_SHOWN_CELLS]:
            logger.info("%s: %s", cell.block, cell.name)
        if len(left) > _SHOWN_CELLS:
            logger.info("... and %d more", len(left) - _SHOWN_CELLS)
        return StudyResult(
            results=results.path.resolve(), cells=len(cells), left=len(left), dry_run=True
        )
    _require_same_formats(root)
    results.path.parent.mkdir(parents=True, exist_ok=True)
    sweep_partials(results.path.parent)
    work = _all_work(chosen, left, plan, results, options, closed)
    runner = Runner(work, root, jobs=options.jobs, deadline=_deadline(options.until))
    with _ended_as_by_ctrl_c():
        found = runner.run()
    ids = {cell.id for cell in cells}
    rows = [row for row in results.rows() if row["cell"] in ids]
    return StudyResult(
        results=results.path.resolve(),
        cells=len(cells),
        trained=sum(1 for cell in left if cell.id in found["done"]),
        failed=sum(1 for cell in left if cell.id in found["failed"]),
        left=len(ids - {row["cell"] for row in rows}),
        stopped=found["stopped"],
    )


def _all_work(
    grid: Grid,
    left: Sequence[Cell],
    plan: Plan,
    results: Results,
    options: StudyOptions,
    closed: set[str],
) -> list[Work]:
    """Return the work in order of priority; within a priority, teachers come before cells."""
    work: dict[str, Work] = {}

    def add_needs(needs: list[Need]) -> None:
        for key, need in in_order(needs).items():
            work.setdefault(key, _work_of_need(need))

    priority_of = {block.name: block.priority for block in grid.blocks}
    for priority in sorted(set(priority_of.values())):
        for block in grid.blocks:
            if block.priority != priority:
                continue
            for piece, needs in _teachers_of(block, plan, grid, results, options, closed):
                add_needs(needs)
                work[piece.key] = piece
        for cell in left:
            if priority_of[cell.block] == priority:
                needs = plan.needs_of_cell(cell)
                add_needs(needs)
                work[cell.id] = _work_of_cell(cell, needs, plan, results, options)
    return list(work.values())


def _work_of_need(need: Need) -> Work:
    return Work(
        key=need.key,
        what=need.what,
        is_done=need.is_made,
        after=need.after,
        command=need.command,
        finish=lambda _: "made",
        fail=lambda _: None,
    )


def _work_of_cell(
    cell: Cell, needs: Sequence[Need], plan: Plan, results: Results, options: StudyOptions
) -> Work:
    folder = plan.run_folder(cell, package_digest())
    row = row_of_cell(cell, commit=options.commit)

    def finish(ended: ProcessResult | None) -> str:
        assert ended is not None  # noqa: S101  (a process trains each cell)
        outcome = outcome_of_cell(ended, folder)
        if options.jobs > 1:
            outcome["wall_seconds"] = None
        results.add(row | outcome | now())
        for weights in folder.glob("*.safetensors"):
            weights.unlink()  # a thousand students would take gigabytes
        return f"top-1 {outcome['top1_last']:.2f} %"

    return Work(
        key=cell.id,
        what=f"{cell.block}: {cell.name}",
        is_done=lambda: any(
            found["cell"] == cell.id and found["status"] == "ok" for found in results.rows()
        ),
        after=tuple(need.key for need in needs),
        command=lambda: plan.train_command(cell, folder, samples=_samples(cell, plan)),
        finish=finish,
        fail=_fail_row(row, results),
    )


def _teachers_of(
    block: Block,
    plan: Plan,
    grid: Grid,
    results: Results,
    options: StudyOptions,
    closed: set[str],
) -> Iterator[tuple[Work, list[Need]]]:
    """Yield the work of each teacher that a block makes, with its needs."""
    for data in block.data:
        for name in block.make:
            settings = {"data": data, "label_noise": None, "tune_fraction": block.tune_fraction}
            row = row_of_teacher(
                settings, name, grid.teachers[name], block=block.name, commit=options.commit
            )
            if row["cell"] in closed:
                continue
            needs = plan.needs_of_teacher(settings, name, with_store=True)
            finish = _finish_teacher(plan.teacher_file(settings, name), row, results)
            fail = _fail_row(row, results)
            what = f"{block.name}: teacher {name}"
            after = tuple(need.key for need in needs)
            yield Work(row["cell"], what, lambda: False, after, None, finish, fail), needs


def _finish_teacher(
    weights: Path, row: Mapping[str, Any], results: Results
) -> Callable[[ProcessResult | None], str]:
    def finish(_: ProcessResult | None) -> str:
        outcome = outcome_of_teacher(weights)
        results.add(dict(row) | outcome | now())
        top1 = outcome["top1_last"]
        return "no accuracy" if top1 is None else f"top-1 {top1:.2f} %"

    return finish


def _fail_row(row: Mapping[str, Any], results: Results) -> Callable[[str], None]:
    def fail(message: str) -> None:
        results.add(dict(row) | {"status": "failed", "error": message} | now())

    return fail


def _samples(cell: Cell, plan: Plan) -> int:
    """Return the number of samples that a cell keeps; its needs must be made."""
    from kdcache.data.beton_manifest import BetonManifest
    from kdcache.selection.subset import Subset

    path = plan.subset(cell.settings)
    if path is not None:
        return len(Subset.load(path))
    return BetonManifest.load(plan.workspace(cell.settings).beton("train")).samples


def _sources(given: Sequence[str], grid: Grid) -> dict[str, str]:
    """Return name -> source for each data set of a grid.

    Raises:
        ConfigError: if a name is not a data set of the grid, or a path does not exist.
    """
    used = [cell.settings["data"] for cell in grid.cells]
    used += [name for block in grid.blocks for name in block.data]
    names = list(dict.fromkeys(used))
    sources = {name: name for name in names}
    for text in given:
        name, _, source = text.partition("=")
        if name not in sources:
            raise ConfigError(
                parameter="source",
                value=text,
                problem=(f"the grid has no data set {name}, expected one of {', '.join(names)}"),
            )
        path = Path(source)
        sources[name] = str(path.resolve()) if path.exists() else source
    for name, source in sources.items():
        is_path = source.startswith(("/", "."))
        if is_path and "{" not in source and not Path(source).exists():
            raise ConfigError(
                f"--source is {name}={source}, expected images, but {source} does not exist",
                parameter="source",
                value=name,
            )
    return sources


def _num_views(cells: Sequence[Cell]) -> int:
    """Return the number V of views of every store: the maximum over the cells."""
    views = [cell.settings["views"] for cell in cells]
    return max((view for view in views if isinstance(view, int)), default=0)


def _require_same_formats(root: Path) -> None:
    """Raise a ConfigError if a kdcache with other file formats made the workspace's studies."""
    path = root / "formats.json"
    wanted = {"formats": package_about()["formats"]}
    if not path.exists():
        write_json(path, wanted)
        return
    found = read_json(path)
    if found != wanted:
        raise ConfigError(
            f"{root} has the formats {found.get('formats')}, expected {wanted['formats']}, those "
            "of this kdcache. Use another --workspace; you may copy the teachers' weights to it"
        )


def _deadline(until: str | None) -> float | None:
    """Return the Unix time at which the clock next shows `until` (HH:MM)."""
    if until is None:
        return None
    now = datetime.now().astimezone()
    hour, minute = map(int, until.split(":"))
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (at if at > now else at + timedelta(days=1)).timestamp()


@contextmanager
def _ended_as_by_ctrl_c() -> Iterator[None]:
    """Turn SIGTERM, which schedulers send, into KeyboardInterrupt."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
