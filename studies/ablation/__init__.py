"""Does prediction make latents easier to diffuse? One experiment in many rows and seeds, scored alike."""
