"""Families that follow from sizes alone."""

from examples import Variant, family

FAMILIES = {
    "Windows and chunks": {
        "dense": family("patterns.dense(4096)", "patterns.dense(64)"),
        "causal": family("patterns.causal(4096)", "patterns.causal(64)"),
        "sliding_window": family("patterns.sliding_window(4096, left=64, right=63, dilation=4)",
                                 "patterns.sliding_window(64, left=11)",
                                 "patterns.sliding_window(64, left=3, right=3, dilation=4)"),
        "block_local": family("patterns.block_local(4096, block=128, causal=True)",
                              "patterns.block_local(64, block=12, causal=True)"),
        "attention_sinks": family("patterns.attention_sinks(4096, n_sinks=4, recent=255)",
                                  "patterns.attention_sinks(64, n_sinks=4, recent=15)"),
    },
    "Sequences": {
        "prefix_lm": family("patterns.prefix_lm(4096, 1024)", "patterns.prefix_lm(64, 20)"),
        "documents": family("patterns.documents([1500, 396, 2200], causal=True)",
                            "patterns.documents([24, 11, 29], causal=True)"),
        "padding": family("patterns.padding(np.arange(4096) < 3000)", "patterns.padding(np.arange(64) < 45)"),
    },
    "Strides, blocks and global tokens": {
        "strided": family("patterns.strided(4096, stride=64)", "patterns.strided(64, stride=8)", tile=8),
        "fixed": family("patterns.fixed(4096, stride=128, n_summary=32)",
                        "patterns.fixed(64, stride=16, n_summary=4)"),
        "global_tokens": family("patterns.global_tokens(4096, range(0, 4096, 128))",
                                "patterns.global_tokens(64, [0, 21, 45])"),
        "longformer": family("patterns.longformer(4096, window=512, global_tokens=range(0, 4096, 128))",
                             "patterns.longformer(64, window=12, global_tokens=[0, 30])"),
        "etc": family("patterns.etc(4096, 256, radius=84)", "patterns.etc(64, 8, radius=6)"),
        "random_blocks": family("patterns.random_blocks(4096, per_row=3)",
                                "patterns.random_blocks(64, per_row=2, block_size=4)"),
        "bigbird": family("patterns.bigbird(4096)", "patterns.bigbird(64, block_size=4, n_random=2)"),
        "deepspeed_layout": family(
            'patterns.deepspeed_layout("variable", 4096, block_size=64, local_window_blocks=[4, 8])',
            'patterns.deepspeed_layout("fixed", 64, block_size=4, attention="unidirectional")'),
    },
    "Grids": {
        "axial": family("patterns.axial((64, 64), [0, 1])", "patterns.axial((8, 8), 0)",
                        "patterns.axial((8, 8), [0, 1])", tile=8, grid=(8, 8)),
        "swin": family("patterns.swin((64, 64), window=8, shift=4)", "patterns.swin((8, 8), window=4)",
                       "patterns.swin((8, 8), window=4, shift=2)", tile=8, grid=(8, 8)),
        "neighborhood": family("patterns.neighborhood((64, 64), kernel_size=13)",
                               "patterns.neighborhood((20, 20), kernel_size=9)", tile=None, grid=(20, 20)),
    },
}

VARIANTS = {
    "longformer": Variant(
        "out, vjp = variants.longformer(q, k, v, q_global, k_global, v_global, window=12, global_tokens=[0, 30])",
        {"q, k, v\nof the other queries": "patterns.longformer(64, window=12, global_tokens=[0, 30]) - global_rows",
         "q_global, k_global, v_global\nof the global queries": "global_rows"}),
    "etc": Variant(
        "(out, out_global), vjp = variants.etc(q, k, v, q_global[:8], k_global[:8], v_global[:8], radius=6)",
        {"the long tokens": "patterns.etc(64, 8, radius=6).long",
         "the global tokens": "patterns.etc(64, 8, radius=6).globals"}),
    "axial_sum": Variant(
        "out, vjp = variants.axial_sum([q, q_global], [k, k_global], [v, v_global], (8, 8))",
        {"along axis 0": "patterns.axial((8, 8), 0)", "along axis 1": "patterns.axial((8, 8), 1)"}),
}
