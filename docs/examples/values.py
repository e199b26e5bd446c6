"""Families that choose by what queries and keys hold. Code lines use the arrays that `inputs` makes."""

from examples import Variant, family

FAMILIES = {
    "Chosen by content": {
        "top_k": family("patterns.top_k(q, k, n_selected=64, causal=True)",
                        "patterns.top_k(q, k, n_selected=8, causal=True)", tile=None),
        "indexer_top_k": family("patterns.indexer_top_k(q, index_k, index_w, n_selected=64)",
                                "patterns.indexer_top_k(q, index_k, index_w, n_selected=8)", tile=None),
        "block_top_k": family("patterns.block_top_k(q, k, block_size=64, n_blocks=8)",
                              "patterns.block_top_k(q, k, block_size=4, n_blocks=4)"),
        "from_block_scores": family("patterns.from_block_scores(block_scores, block_size=4, k=16)",
                                    "patterns.from_block_scores(block_scores, block_size=4, k=4)", tile=None),
        "lsh": family("patterns.lsh(q, n_buckets=64, n_hashes=2, chunk_length=64, causal=True)",
                      "patterns.lsh(q, n_buckets=8, n_hashes=2, chunk_length=8, causal=True, block_size=4)", tile=None),
        "clusters": family("patterns.clusters(q, k, means, window=64)",
                           "patterns.clusters(q, k, means, window=8, block_size=4)", tile=None),
        "moba": family("patterns.moba(q, k, chunk_size=256, top_k=3)",
                       "patterns.moba(q, k, chunk_size=8, top_k=3, block_size=4)", tile=None),
        "quest": family("patterns.quest(q, k, page_size=64, token_budget=512)",
                        "patterns.quest(q, k, page_size=4, token_budget=16, block_size=4)", tile=None),
        "nsa_selection": family("patterns.nsa_selection(probabilities, n_kv_heads=1, n_tokens=4096, compress_block=4, "
                                "compress_stride=4, select_block=64, n_selected=8)",
                                "patterns.nsa_selection(probabilities, n_kv_heads=1, n_tokens=64, compress_block=4, "
                                "compress_stride=4, select_block=4, n_selected=5, block_size=4)", tile=None),
        "vertical_slash": family("patterns.vertical_slash(q, k, n_vertical=100, n_slash=200)",
                                 "patterns.vertical_slash(q, k, n_vertical=3, n_slash=6, last_q=8, n_first=1, "
                                 "n_recent=4, block_size=4)", tile=None),
        "flex_prefill": family("patterns.flex_prefill(q, k, gamma=0.9, tau=0.1)",
                               "patterns.flex_prefill(q, k, gamma=0.6, tau=0.1, block_size=4)", tile=None),
        "xattention": family("patterns.xattention(q, k, stride=16, threshold=0.9)",
                             "patterns.xattention(q, k, block_size=4, stride=4, threshold=0.6)", tile=None),
        "sparge": family("patterns.sparge(q, k, tau=0.9, theta=0.3)", "patterns.sparge(q, k, tau=0.6, theta=0.1)",
                         tile=None, n_tokens=1024),
    },
}

VARIANTS = {
    "reformer": Variant(
        "out, vjp = variants.reformer(q, v, n_buckets=8, n_hashes=2, chunk_length=8)",
        {"one array is q and k": "patterns.lsh(q, n_buckets=8, n_hashes=2, chunk_length=8)"}),
    "routing": Variant(
        "out, vjp = variants.routing(q, k, v, means, window=8)",
        {"of a token's clusters the mean is taken": "patterns.clusters(q, k, means, window=8)"}),
    "nsa": Variant(
        "out, vjp = variants.nsa(q, k, v, k[3::4], v[3::4], gates, compress_block=4, compress_stride=4, "
        "select_block=4, n_selected=5, window=8)",
        {"compressed": "Pattern.from_ranges([0] * 64, np.arange(1, 65) // 4, 16)",
         "selected, for example": "patterns.nsa_selection(probabilities, n_kv_heads=1, n_tokens=64, compress_block=4, "
                                  "compress_stride=4, select_block=4, n_selected=5)",
         "sliding": "patterns.sliding_window(64, left=7)"}),
}
