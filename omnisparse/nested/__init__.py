"""Room: nested. Every size in one file, of which any smaller one is a prefix.

Nothing here loads torch until a caller asks for tensors.
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
