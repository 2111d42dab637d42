"""Draw a table of a study: one line per row, with error bars of one standard error."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from kdcache.errors import ConfigError
from kdcache.files import replace_atomically
from kdcache.studies.tables import Table


def require_matplotlib() -> None:
    """Check that figures can be drawn.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise ConfigError(
            "--plot is given, but the package matplotlib is not installed. "
            "Run: pip install 'kdcache[plot]'",
            parameter="plot",
            value=True,
        )


def draw(table: Table, path: Path, *, rows: str, columns: str) -> None:
    """Draw a table and write the figure to a file.

    Args:
        table: the table.
        path: file of the figure; its suffix decides the format.
        rows: title of the legend.
        columns: label of the x axis.

    Raises:
        ConfigError: if matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for row in table.rows:
        summaries = [(x, table.summary(row, name)) for x, name in enumerate(table.columns)]
        shown = [(x, summary) for x, summary in summaries if summary is not None]
        axes.errorbar(
            [x for x, _ in shown],
            [summary.mean for _, summary in shown],
            yerr=[summary.standard_error or 0 for _, summary in shown],
            marker="o",
            capsize=3,
            label=row,
        )
    axes.set_xticks(range(len(table.columns)), table.columns)
    axes.set_xlabel(columns)
    axes.set_ylabel("top-1 after the last epoch, % (± 1 standard error)")
    axes.legend(title=rows)
    axes.grid(alpha=0.3)
    with replace_atomically(path) as partial:
        figure.savefig(partial, format=path.suffix[1:])
