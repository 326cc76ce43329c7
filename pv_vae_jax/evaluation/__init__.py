"""What a trained model is worth: reconstruction, prediction, samples, latent pictures, the report."""
