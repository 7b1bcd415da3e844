"""`lorakit quickstart`: training and evaluation on the embedded base models, and their weights."""
