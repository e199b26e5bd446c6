"""The tokenizer of BERT: words and marks, each cut into the longest pieces that the vocabulary has."""

import unicodedata

import numpy as np

LONGEST_WORD = 100  # letters; a longer word is unknown


class WordPieces:
    """From the pieces of a vocabulary in order; those that go on with a word begin with ##."""

    def __init__(self, pieces):
        self.pieces = pieces
        self.ids = {piece: number for number, piece in enumerate(pieces)}

    def encode(self, text):
        """Token numbers, int64, without marks of beginning and end."""
        return np.array([number for word in words(text) for number in self._cut(word)], np.int64)

    def passage(self, tokens):
        """Tokens between the marks of beginning and end."""
        return np.concatenate(([self.ids["[CLS]"]], tokens, [self.ids["[SEP]"]]))

    def _cut(self, word):
        found, begin = [], 0
        while begin < len(word):
            for end in range(len(word), begin, -1):
                piece = ("##" if begin else "") + word[begin:end]
                if piece in self.ids:
                    break
            else:
                return [self.ids["[UNK]"]]
            found.append(self.ids[piece])
            begin = end
        return found if len(word) <= LONGEST_WORD else [self.ids["[UNK]"]]


def words(text):
    """Small letters without accents; each mark of punctuation, or other sign of ASCII, is a word."""
    plain = "".join(c for c in unicodedata.normalize("NFD", text.lower()) if unicodedata.category(c) != "Mn")
    return "".join(f" {c} " if _is_mark(c) else c for c in plain).split()


def _is_mark(c):
    return unicodedata.category(c)[0] == "P" or (c.isascii() and not c.isalnum() and not c.isspace())
