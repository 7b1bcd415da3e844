"""Building blocks of self-contained HTML pages, used by every report of lorakit."""

from lorakit.reports.blocks import (
    Badge,
    Choice,
    Grid,
    GridRow,
    Jump,
    Level,
    Link,
    Pair,
    Shot,
    Table,
    ViewedImage,
    Viewer,
    file_link,
    level_of,
)
from lorakit.reports.charts import bar_chart, histogram, line_chart
from lorakit.reports.drawing import Chart
from lorakit.reports.images import EmbeddedImage, contact_sheet, data_uri, embed_image
from lorakit.reports.rendering import Block, render_block, render_page
from lorakit.reports.scatter import ScatterPoint, scatter_chart
from lorakit.reports.training_curves import TrainingCurves, training_curves

__all__ = [
    "Badge",
    "Block",
    "Chart",
    "Choice",
    "EmbeddedImage",
    "Grid",
    "GridRow",
    "Jump",
    "Level",
    "Link",
    "Pair",
    "ScatterPoint",
    "Shot",
    "Table",
    "TrainingCurves",
    "ViewedImage",
    "Viewer",
    "bar_chart",
    "contact_sheet",
    "data_uri",
    "embed_image",
    "file_link",
    "histogram",
    "level_of",
    "line_chart",
    "render_block",
    "render_page",
    "scatter_chart",
    "training_curves",
]
