"""Sweeps: the adapters of several recipes trained together on one frozen base model."""
