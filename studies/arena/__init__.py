"""A protocol in files that compares how easily the latents of any video VAE are generated."""
