"""LAFR: restores degraded faces inside a diffusion model's latent space. The library; no host is imported here."""

__version__ = "0.1.0"
