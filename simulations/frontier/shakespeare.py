"""Shakespeare's speakers: a site for each of the larger ones, whose last speeches are held out."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

from fedpeft.data import Corpus, Example, Source
from fedpeft.errors import DataError

_HEAD = ":\n"


@dataclass(frozen=True)
class Shakespeare(Source):
    """The speeches of the speakers with the most text, in pieces; the group of a piece is its speaker.

    The corpus is Karpathy's `tinyshakespeare` (2015), which LEAF (Caldas et al., 2018, arXiv 1812.01097) split by
    speaker too. Of each speaker's pieces, in the order of the plays, the last are held out.

    Args:
        speakers: how many.
        characters: of a piece, at least, but for a speaker's last one; pieces end with a line.
        held_out: share of a speaker's pieces that are for testing, in (0, 1).
    """

    speakers: int = 16
    characters: int = 120
    held_out: float = 0.15

    def load(self, seed: int) -> Corpus:
        """Read `tinyshakespeare/` in FEDPEFT_DATA; nothing is drawn."""
        folder = Path(os.environ.get("FEDPEFT_DATA", "")) / "tinyshakespeare"
        try:
            known = json.loads((folder / "speakers.json").read_text())
            text = (folder / "input.txt").read_text()
        except OSError as error:
            raise DataError(f"{folder}: {error.strerror}; FEDPEFT_DATA must hold tinyshakespeare/") from None
        largest = sorted(known, key=lambda name: (-known[name]["chars"], name))[: self.speakers]
        said: dict[str, list[str]] = {name: [] for name in largest}
        for speech in text.split("\n\n"):
            name, head, words = speech.partition(_HEAD)
            if head and name in said:
                said[name] += words.splitlines()
        train, test = [], []
        for name, lines in said.items():
            pieces = [Example(piece, group=name) for piece in _pieces(lines, self.characters)]
            kept = round((1 - self.held_out) * len(pieces))
            train += pieces[:kept]
            test += pieces[kept:]
        return Corpus("tinyshakespeare", tuple(train), tuple(test))


def _pieces(lines: list[str], characters: int) -> list[str]:
    """Lines put together until they are long enough."""
    pieces, piece = [], ""
    for line in lines:
        piece += line + "\n"
        if len(piece) >= characters:
            pieces.append(piece)
            piece = ""
    return [*pieces, piece] if piece else pieces
