"""The embedded base model: a procedural picture world, its CLIP, autoencoder, U-Net and DiT."""
