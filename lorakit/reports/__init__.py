"""Building blocks of a self-contained HTML page, used by every report of lorakit."""

from lorakit.reports.charts import bar_chart, line_chart
from lorakit.reports.html import (
    Html,
    badge,
    card,
    columns,
    details,
    escape,
    html_grid,
    html_page,
    html_table,
    join,
    paragraph,
    section,
    summary_banner,
    tag,
)
from lorakit.reports.images import contact_sheet, embed_image, embed_image_file
from lorakit.reports.scatter import ScatterPoint, scatter_chart
from lorakit.reports.training_curves import training_curves

__all__ = [
    "Html",
    "ScatterPoint",
    "badge",
    "bar_chart",
    "card",
    "columns",
    "contact_sheet",
    "details",
    "embed_image",
    "embed_image_file",
    "escape",
    "html_grid",
    "html_page",
    "html_table",
    "join",
    "line_chart",
    "paragraph",
    "scatter_chart",
    "section",
    "summary_banner",
    "tag",
    "training_curves",
]
