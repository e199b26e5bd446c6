"""Which compressed blocks a query of NSA sees and which blocks it selects: by the paper, and by a released package."""

import numpy as np

from sparseattn.patterns.content.chosen import chosen_blocks
from sparseattn.patterns.content.inputs import wide
from sparseattn.patterns.content.nsa_selection import selected
from sparseattn.selection.products import packed, products
from sparseattn.selection.topk import top_by_chunks
from sparseattn.xp import device_of, namespace


class Paper:
    """Blocks begin at 0 and are seen once complete; selection by probabilities, three forced blocks included."""

    extra_keys = 0  # of the window

    def __init__(self, blocks, n_compressed, n_keys):
        blocks.check_forced()
        blocks.check_count(n_compressed, n_keys, "compressed_k")
        self.blocks, self.n_keys = blocks, n_keys

    def seen(self, position):
        """How many compressed keys each query sees, from the first on."""
        return np.maximum((position + 1 - self.blocks.length) // self.blocks.stride + 1, 0)

    def choice(self, call, lse, position):
        """The selected branch's pattern, from the compressed branch's checked call and its lse."""
        group = max(call.q.shape[1] // max(call.k.shape[1], 1), 1)
        panels, seen, xp = packed(wide(call.k)), self.seen(position), namespace(lse)
        lse = xp.where(lse == -np.inf, np.inf, lse)  # a query that sees none has probabilities of 0
        seen_there = xp.asarray(seen)[:, None]

        def summed(at, rows):
            n = int(seen[rows].max())
            total = xp.zeros((rows.stop - rows.start, n), panels.dtype)
            for head in range(at[1] * group, (at[1] + 1) * group):
                s = products(wide(call.q[at[0], head, rows]) * call.scale, panels[at], n)[:, :n]
                total += xp.exp(s - lse[at[0], head, rows, None])
            total[xp.arange(n) >= seen_there[rows]] = 0
            return total

        return selected(summed, call.q[:, ::group], self.n_keys, self.blocks, group)


class Package:
    """Windows padded on the left, one a stride, seen after their end; selection by mean logits, the own block extra."""

    extra_keys = 1

    def __init__(self, blocks, n_compressed, n_keys):
        self.blocks, self.n_keys, self.n_memory = blocks, n_keys, n_compressed - n_keys // blocks.stride
        if self.n_memory < 0:
            raise ValueError(f"compressed_k has {n_compressed} keys; {n_keys} tokens have {n_keys // blocks.stride} "
                             f"strides of {blocks.stride}, with a compressed key each behind those of memory")

    def seen(self, position):
        """How many compressed keys each query sees, those of memory included."""
        return self.n_memory + position // self.blocks.stride

    def choice(self, call, lse, position):
        """The selected branch's pattern; a mean of logits is the logit of means."""
        size, parts = self.blocks.size, self.blocks.size // self.blocks.stride
        (batch, n_kv_heads, n_compressed, head_dim), n_queries = call.k.shape, call.q.shape[2]
        n_whole = (n_compressed - self.n_memory) // parts
        k = wide(call.k)[:, :, self.n_memory : self.n_memory + n_whole * parts]
        k = k.reshape(batch, n_kv_heads, n_whole, parts, head_dim).mean(axis=3)
        q = wide(call.q).reshape(batch, n_kv_heads, call.q.shape[1] // n_kv_heads, n_queries, head_dim)
        q, panels = q.mean(axis=2) * call.scale, packed(k)
        chosen = top_by_chunks(lambda at, rows, n: products(q[at][rows], panels[at], n), q, n_whole,
                               self.blocks.n_selected, position // self.blocks.stride // parts)
        near = [(position // size * size, position + 1)]
        group = call.q.shape[1] // n_kv_heads
        return chosen_blocks(chosen, size, position + 1, self.n_keys, near, share=group).to(device_of(q))


RULES = {"paper": Paper, "package": Package}
