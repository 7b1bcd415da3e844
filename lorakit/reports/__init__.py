"""Building blocks of one self-contained HTML page, used by every report lorakit writes."""

from lorakit.reports.charts import bar_chart, line_chart
from lorakit.reports.html import (
    Html,
    badge,
    card,
    columns,
    details,
    escape,
    grid,
    join,
    page,
    paragraph,
    section,
    table,
    tag,
    verdict,
)
from lorakit.reports.images import contact_sheet, image, image_file
from lorakit.reports.scatter import Cross, cross_chart
from lorakit.reports.training_curves import training_curves

__all__ = [
    "Cross",
    "Html",
    "badge",
    "bar_chart",
    "card",
    "columns",
    "contact_sheet",
    "cross_chart",
    "details",
    "escape",
    "grid",
    "image",
    "image_file",
    "join",
    "line_chart",
    "page",
    "paragraph",
    "section",
    "table",
    "tag",
    "training_curves",
    "verdict",
]
