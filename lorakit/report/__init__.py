"""Building blocks of one self-contained HTML page, used by every report lorakit writes."""

from lorakit.report.charts import bar_chart, line_chart
from lorakit.report.markup import (
    Html,
    badge,
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
from lorakit.report.pictures import contact_sheet, image, image_file

__all__ = [
    "Html",
    "badge",
    "bar_chart",
    "contact_sheet",
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
    "verdict",
]
