"""sparseattn beside PyTorch's attention on one GPU."""
