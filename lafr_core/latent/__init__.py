"""Encodes, aligns, finishes and guides latents: everything that happens in a diffusion model's latent space."""
