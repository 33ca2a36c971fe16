"""How the embedded model is made: renderer, autoencoder, diffusion, export, samples."""
