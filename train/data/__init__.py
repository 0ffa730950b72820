"""What training sees: photos, drawn faces, composites, stored latent pairs."""
