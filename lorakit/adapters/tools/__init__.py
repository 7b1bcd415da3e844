"""Tools for finished adapters of any origin: inspect, check, combine, resize, extract, merge."""
