"""Which sparsity fits: statistics of dense attention, candidates, the choice among them, and what stacks connect."""
