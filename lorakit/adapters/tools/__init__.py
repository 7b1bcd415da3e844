"""Work on finished adapters of any origin: inspect, check, convert, combine, resize, extract, merge."""
