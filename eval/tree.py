"""Reading tree-sitter's parses."""

from tree_sitter import Node


def nodes_of(root: Node) -> list[Node]:
    """`root` and all below it, in no certain order, without recursion: a degenerate program nests deeper than Python's stack."""
    nodes, stack = [], [root]
    while stack:
        node = stack.pop()
        nodes.append(node)
        stack += node.children
    return nodes


def text_of(node: Node | None, source: bytes) -> str:
    """The text of a node of the parse of `source`; "" for none."""
    return source[node.start_byte : node.end_byte].decode() if node else ""
