"""Pages that open without a network: templates of one look, with pictures inside or files of this machine."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import jinja2
import markupsafe

from tag2mask.stages import report_parts as parts
from tag2mask.stages.evaluation import percent

__all__ = ["GENERATOR", "render"]

GENERATOR = '<meta name="generator" content="tag2mask">'
"""By this a page is known as one of ours, which may be replaced."""


def render(template: str, **values: Any) -> bytes:
    """A page from one of the templates, in UTF-8; what comes from outside is escaped."""
    # a file name that is no Unicode arrives as lone surrogates
    return _environment().get_template(template).render(**values).encode("utf-8", "replace")


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "number": "{:,}".format, "zip": zip}
    environment.globals |= {"confidence_css": parts.confidence_css(), "generator": markupsafe.Markup(GENERATOR)}
    return environment
