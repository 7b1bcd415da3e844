"""Networks that families assemble; these modules import torch, and are imported when a model is used."""
