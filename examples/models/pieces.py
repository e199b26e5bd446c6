"""The tokenizer of Gemma: pieces joined two by two, the best pair first."""

import heapq
import re

import numpy as np

START, USER_DEFINED = 2, 4  # the token that begins a text; the kind of a piece that is never split
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


class Tokenizer:
    """From the pieces of a vocabulary, their scores (a pair of high score is joined early) and their kinds."""

    def __init__(self, pieces, scores, kinds):
        self.pieces, self.scores = pieces, scores
        self.ids = {piece: i for i, piece in enumerate(pieces)}
        whole = sorted((p for p, kind in zip(pieces, kinds) if kind == USER_DEFINED), key=len, reverse=True)
        self.whole = re.compile("(" + "|".join(map(re.escape, whole)) + ")") if whole else None

    def encode(self, text):
        """Token numbers, int64, START first."""
        found = [START]
        for at, part in enumerate(self.whole.split(text) if self.whole else [text]):
            found += [self.ids[part]] if at % 2 else self._joined(part.replace(" ", SPACE))
        return np.array(found)

    def _joined(self, text):
        """The numbers of the pieces that remain when no two neighbours make a piece."""
        pieces, before, after = list(text), list(range(-1, len(text) - 1)), list(range(1, len(text) + 1))
        waiting = [pair for i in range(len(text) - 1) if (pair := self._pair(pieces, i, i + 1))]
        heapq.heapify(waiting)
        while waiting:
            _, i, whole = heapq.heappop(waiting)
            j = after[i]
            if not pieces[i] or j == len(pieces) or pieces[i] + pieces[j] != whole:
                continue  # one of the two was joined with another neighbour meanwhile
            pieces[i], pieces[j], after[i] = whole, "", after[j]
            if after[i] < len(pieces):
                before[after[i]] = i
            for left, right in ((i, after[i]), (before[i], i)):
                if left >= 0 and right < len(pieces) and (pair := self._pair(pieces, left, right)):
                    heapq.heappush(waiting, pair)
        return [number for piece in pieces if piece for number in self._numbers(piece)]

    def _pair(self, pieces, i, j):
        whole = pieces[i] + pieces[j]
        return (-self.scores[self.ids[whole]], i, whole) if whole in self.ids else None

    def _numbers(self, piece):
        """The piece's number, or those of its bytes."""
        return [self.ids[piece]] if piece in self.ids else [self.ids[f"<0x{byte:02X}>"] for byte in piece.encode()]
