"""Building blocks of the networks: causal convolution, resampling, norm, attention, embeddings."""
