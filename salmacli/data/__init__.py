"""What is read: benchmarks, synthetic scenes, frames, RLE, templates, training, collate."""
