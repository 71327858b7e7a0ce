"""SALMA: segments in video, frame by frame, the objects that a sentence names."""

__version__ = "0.1.0"
