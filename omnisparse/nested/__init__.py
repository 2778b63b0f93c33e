"""Room: nested. Every size in one file, of which any smaller one is a prefix.

Nothing here loads torch until a caller asks for tensors.
"""

from omnisparse.nested.inspection import band_sizes, band_summary, inspect_nested, is_nested
from omnisparse.nested.reader import NestedFile, grow, grow_from, missing_range, read_nested
from omnisparse.nested.writer import NestedInfo, write_nested

__all__ = [
    "NestedFile",
    "NestedInfo",
    "band_sizes",
    "band_summary",
    "grow",
    "grow_from",
    "inspect_nested",
    "is_nested",
    "missing_range",
    "read_nested",
    "write_nested",
]
