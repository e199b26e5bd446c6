"""The demo: a small trained language model on real text, dense and with sparse patterns; then 65,536 tokens."""
