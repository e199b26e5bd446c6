"""Longformer: a window, and a few global tokens."""

from sparseattn.pattern import checking
from sparseattn.patterns.positional.dense import causal as causal_pattern
from sparseattn.patterns.positional.global_tokens import global_tokens as global_pattern
from sparseattn.patterns.positional.sliding_window import sliding_window


def longformer(n_tokens, *, window, dilation=1, global_tokens=(), causal=False, block_size=None):
    """Each token attends a window around it; global tokens attend every token, and every token attends them.

    Parameters
    ----------
    n_tokens : int
        Tokens.
    window : int
        Tokens of the whole window: ``window // 2`` on each side, self extra.
    dilation : int or sequence of int
        Distance d between attended keys of the window, so that it reaches d times as far; one for all or one per head.
    global_tokens : sequence of int, or array of bool (n_tokens,) or (batch, n_tokens)
        The global tokens, of all sequences or of each batch item; an array of CuPy is copied to the CPU.
    causal : bool
        Keys after the query are left out, global or not.
    block_size : int or tuple of int, optional
        Tiles for the kernels; speed only.

    Returns
    -------
    Pattern
        Shape (n_tokens, n_tokens), shared by all heads, or one head per dilation.

    Notes
    -----
    Query i attends key j when ``j = i + dilation * t`` with abs(t) <= window // 2, or i or j is global; with `causal`
    also j <= i. A set, so a global token inside the window counts once. `window` is that of Transformers; AllenAI's
    code calls ``window // 2`` its ``attention_window``, and its layers never use the causal mode of its kernel. Any
    n_tokens will do; rows near the ends have fewer keys. The released model gives global queries projections of their
    own: `sparseattn.variants.longformer`. O(n_tokens) to build. `density_in_tiles` is 0.94 for a window of 512 and 64
    global tokens of 16,384.

    References
    ----------
    .. [1] Beltagy et al., Longformer, arXiv:2004.05150, section 3.1.
    """
    side = checking.count(window, "window") // 2
    local = sliding_window(n_tokens, left=side, right=0 if causal else side, dilation=dilation, block_size=block_size)
    everywhere = global_pattern(n_tokens, global_tokens, block_size=block_size)
    return local | (everywhere & causal_pattern(n_tokens) if causal else everywhere)
