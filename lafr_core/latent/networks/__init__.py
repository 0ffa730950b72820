"""The networks that work on latents: autoencoder, adapter with its codebook, starter prior."""
