"""YAML from outside: plain values only, no objects, no aliases (a few nested ones can stand for gigabytes)."""

from __future__ import annotations

from typing import Any

import yaml

from tag2mask.types import UserError

MOST_BYTES = 4 << 20


class _NoAliases(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read here; write the value out")
        return super().compose_node(parent, index)


def parse_yaml(content: bytes, where: object) -> Any:
    """The values in a YAML file's bytes; ``where`` names the file in messages.

    Raises:
        UserError: not YAML, not UTF-8, too large, too deep, or with objects or aliases.
    """
    if len(content) > MOST_BYTES:
        raise UserError(f"{where} holds {len(content)} bytes; settings and class lists have at most {MOST_BYTES}")
    try:
        return yaml.load(content.decode("utf-8-sig"), Loader=_NoAliases)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is not readable YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply to be settings or a class list") from None
