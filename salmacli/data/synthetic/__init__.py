"""A small procedural benchmark, written in the official layouts of the real ones."""
