"""A chart of what a GPU of each stage holds."""

from __future__ import annotations

from pathlib import Path

from models.errors import BadInput

from .found import GIB, PARTS, Found, name_of


def plot(found: Found, path: Path) -> None:
    """A bar for a GPU of each stage, its memory by part, as SVG or PNG."""
    try:
        import matplotlib
    except ImportError:
        raise BadInput("--plot needs matplotlib: pip install 'rackserve[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = found.memory()
    parts = sorted({part for stage in stages for part in stage}, key=PARTS.index)
    limit = sum(stages[0].values()) / GIB
    figure, axes = pyplot.subplots(figsize=(8, 2.4 + 0.4 * len(stages)), layout="constrained")
    left = [0.0] * len(stages)
    colors = pyplot.get_cmap("tab20")
    for index, part in enumerate(parts):
        sizes = [max(0, stage.get(part, 0)) / GIB for stage in stages]
        color = {"free": "white", "beyond vLLM's share": "lightgrey"}.get(part, colors(index))
        axes.barh(range(len(stages)), sizes, left=left, label=part, color=color, edgecolor="grey")
        left = [begin + size for begin, size in zip(left, sizes, strict=True)]
    axes.axvline(limit, color="black", linewidth=2, label=f"a GPU: {limit:.1f} GiB", gid="limit")
    axes.set_yticks(range(len(stages)), [f"stage {stage}" for stage in range(len(stages))])
    axes.invert_yaxis()
    axes.set_xlabel("GiB of a GPU")
    axes.set_title(f"{found.nearest.model.name}, {name_of(found.nearest)}")
    figure.legend(loc="outside lower center", ncol=5, fontsize="small")
    figure.savefig(path, format=path.suffix[1:].lower())
    pyplot.close(figure)
