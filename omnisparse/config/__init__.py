"""Room: config. The run configuration, and YAML as it is read everywhere."""

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
