"""Are latents of a predictive VAE easier to diffuse? A world whose content is motion, scored exactly, with controls."""
