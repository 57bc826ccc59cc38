"""The report's page: tables and pictures in one HTML file that opens offline."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from storage.dataset_index import DatasetIndex
from storage.images import decode
from storage.labels import Labels
from tasks.runtime import Runtime

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEMPLATES = Path(__file__).parent / "templates"
MONTAGE_CLUSTERS = 12
MONTAGE_IMAGES = 8
THUMBNAIL_PIXELS = 48


def draw(tables: dict[str, Any], *, labels: Labels, images: DatasetIndex, runtime: Runtime) -> dict[str, bytes]:
    """The pictures of the page as PNG, by file name."""
    figures = {
        "scores.png": _score_figure(tables["scores"]),
        "clusters.png": _cluster_figure(tables["clusters"]),
        "montage.png": _montage(labels, images, runtime),
    }
    return {name: _png(figure) for name, figure in figures.items()}


def render(title: str, tables: dict[str, Any], *, pictures: dict[str, bytes]) -> str:
    """The page as HTML, with its pictures inside."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), undefined=StrictUndefined
    )
    inside = {name.removesuffix(".png"): picture_uri(png) for name, png in pictures.items()}
    return environment.get_template("report.html.j2").render(title=title, tables=tables, pictures=inside)


def picture_uri(png: bytes) -> str:
    """A PNG as an address that needs no server."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()


def _score_figure(rows: list[dict[str, Any]]) -> Figure:
    """Accuracy of each encoder, a group of bars for each score."""
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys((row["task"], row["score"]) for row in rows))
    encoders = list(dict.fromkeys(row["encoder"] for row in rows))
    figure = Figure(figsize=(1.5 + 2.4 * len(groups), 3.6))
    axes = figure.add_subplot()
    width = 0.8 / len(encoders)
    for number, encoder in enumerate(encoders):
        own = {(row["task"], row["score"]): row for row in rows if row["encoder"] == encoder}
        places = [place + number * width for place, group in enumerate(groups) if group in own]
        values = [own[group]["value"] for group in groups if group in own]
        reach = [
            [own[group]["value"] - own[group]["low"] for group in groups if group in own],
            [own[group]["high"] - own[group]["value"] for group in groups if group in own],
        ]
        axes.bar(places, values, width, yerr=reach, capsize=2, label=encoder)
    axes.set_xticks([place + 0.4 - width / 2 for place in range(len(groups))])
    axes.set_xticklabels([f"{task}\n{score}" for task, score in groups])
    axes.set_ylabel("accuracy on test images")
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _cluster_figure(clusters: dict[str, Any]) -> Figure:
    """Inertia by iteration, and sizes of the clusters on both datasets, largest first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3))
    inertia, sizes = figure.subplots(1, 2)
    inertia.plot(range(1, len(clusters["inertia"]) + 1), clusters["inertia"], marker="o", markersize=3)
    inertia.set_xlabel("pass over the rows")
    inertia.set_ylabel("inertia")
    for name, label in (("clustered_sizes", "clustered dataset"), ("labelled_sizes", "labelled dataset")):
        counts = np.sort(np.array(clusters[name]))[::-1]
        sizes.plot(range(1, len(counts) + 1), counts / max(1, counts.sum()), label=label)
    sizes.set_xlabel("clusters, largest first")
    sizes.set_ylabel("share of rows")
    sizes.legend(fontsize=8, frameon=False)
    for axes in (inertia, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _montage(labels: Labels, images: DatasetIndex, runtime: Runtime) -> Figure:
    """The images nearest to the centroids of the largest clusters, a row of images for each."""
    from matplotlib.figure import Figure
    from PIL import Image

    table = labels.read()
    sizes = np.array(labels.facts["sizes"])
    chosen = [cluster for cluster in np.argsort(-sizes, kind="stable")[:MONTAGE_CLUSTERS] if sizes[cluster]]
    reader = images.images(runtime.place(images.name), runtime.cache)
    row_ids = images.row_ids()
    figure = Figure(figsize=(0.62 * MONTAGE_IMAGES + 1, 0.62 * len(chosen)))
    grid = figure.subplots(len(chosen), MONTAGE_IMAGES, squeeze=False)
    for row, cluster in enumerate(chosen):
        members = np.flatnonzero(table["label"] == cluster)
        nearest = members[np.argsort(table["distance"][members], kind="stable")[:MONTAGE_IMAGES]]
        for column, axes in enumerate(grid[row]):
            axes.axis("off")
            if column < len(nearest):
                (position,) = np.flatnonzero(row_ids == table["row_id"][nearest[column]])
                pixels = decode(reader.read(int(position)))
                size = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
                axes.imshow(np.asarray(Image.fromarray(pixels).resize(size)))
        place = {"transform": grid[row][0].transAxes, "ha": "right", "va": "center"}
        grid[row][0].text(-0.15, 0.5, f"{cluster}: {sizes[cluster]}", fontsize=6, **place)
    return figure
