"""Room: config. The run configuration, and YAML as it is read everywhere.

The names of the schema are imported on first use: who only reads YAML needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omnisparse.config.schema import (
        ConfigError,
        CorpusConfig,
        RunConfig,
        config_from_dict,
        config_to_dict,
        config_to_yaml,
        load_config,
        override_config,
        parse_value,
    )

__all__ = [
    "ConfigError",
    "CorpusConfig",
    "RunConfig",
    "config_from_dict",
    "config_to_dict",
    "config_to_yaml",
    "load_config",
    "override_config",
    "parse_value",
]


def __getattr__(name: str) -> Any:
    """Import a name of the schema the first time it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("omnisparse.config.schema"), name)
