"""The operators, a folder each: reference, backends, `api`, what it costs and the shapes to measure it at."""
