"""The dense network: embedding, attention over a static cache, norms, lm_head. It knows nothing of sparsity."""
