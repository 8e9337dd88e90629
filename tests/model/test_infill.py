"""Pieces of a text around a gap, as token ids and back."""

import pytest

from model.generation import decode_behind
from model.infill import ANCHOR, encode_infill, encode_piece
from train.documents import train_tokenizer

PIECES = ["x", " x", "  x", "\n    return a;\n", "    return", "", " ", "\n", "t a) {", "é"]


@pytest.mark.parametrize("kind", ["metaspace", "bytes"])
def test_pieces_come_back_with_every_space(metaspace, kind):
    """Alone, Mistral's kind of tokenizer gives "x" and " x" the same ids."""
    tokenizer = metaspace if kind == "metaspace" else train_tokenizer(["int f(int a) {\n    return a;\n}\n\n"] * 9)
    for piece in PIECES:
        assert decode_behind(tokenizer, encode_piece(tokenizer, piece), ANCHOR) == piece
    assert len({tuple(encode_infill(tokenizer, "", piece, "y")) for piece in PIECES}) == len(PIECES)
    assert metaspace("x", add_special_tokens=False)["input_ids"] == metaspace(" x", add_special_tokens=False)["input_ids"]
