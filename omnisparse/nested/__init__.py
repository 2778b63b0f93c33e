"""Room: nested. One file with models of every size; each smaller model is a prefix of the file.

Nothing here loads torch until a caller needs tensors.
"""

from omnisparse.nested.growing import grow, grow_from, missing_range, write_prefix
from omnisparse.nested.inspection import (
    band_sizes,
    band_summary,
    inspect_header,
    inspect_nested,
    is_nested,
    is_nested_place,
)
from omnisparse.nested.reader import NestedFile, read_nested
from omnisparse.nested.sources import is_url
from omnisparse.nested.writer import NestedInfo, write_nested

__all__ = [
    "NestedFile",
    "NestedInfo",
    "band_sizes",
    "band_summary",
    "grow",
    "grow_from",
    "inspect_header",
    "inspect_nested",
    "is_nested",
    "is_nested_place",
    "is_url",
    "missing_range",
    "read_nested",
    "write_nested",
    "write_prefix",
]
