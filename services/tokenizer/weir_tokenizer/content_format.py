"""Whether a template wants a message's content as one string or as a list of parts.

Most templates write `message['content']` as it comes, and callers of transformers give them a string. Templates of
models that also see images walk it instead (`{% for part in message['content'] %}`); given a string they would walk its
characters and render nothing of it. Those that can do both ask first (`is string`), and get the string.
"""

from __future__ import annotations

from collections.abc import Set
from enum import Enum

from jinja2 import nodes


class ContentFormat(Enum):
    STRING = "string"
    PARTS = "parts"


def content_format(tree: nodes.Template) -> ContentFormat:
    """PARTS for a template that walks the content and never asks whether it is a string."""
    names = _names_of_content(tree)
    walks = any(_is_content(loop.iter, names) for loop in tree.find_all(nodes.For))
    asks = any(test.name == "string" and _is_content(test.node, names) for test in tree.find_all(nodes.Test))
    return ContentFormat.PARTS if walks and not asks else ContentFormat.STRING


def _names_of_content(tree: nodes.Template) -> set[str]:
    """Variables that stand for the content: `{% set parts = message.content %}`."""
    return {
        node.target.name
        for node in tree.find_all(nodes.Assign)
        if isinstance(node.target, nodes.Name) and _is_content(node.node, frozenset())
    }


def _is_content(node: nodes.Node, names: Set[str]) -> bool:
    """`x.content`, `x['content']`, a variable for it, or any of these through a filter (`| list`) or a slice."""
    if isinstance(node, nodes.Filter):
        return node.node is not None and _is_content(node.node, names)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content"
    if isinstance(node, nodes.Getitem):
        if isinstance(node.arg, nodes.Slice):
            return _is_content(node.node, names)
        return isinstance(node.arg, nodes.Const) and node.arg.value == "content"
    return isinstance(node, nodes.Name) and node.name in names
