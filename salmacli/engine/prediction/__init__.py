"""Videos and sentences → masks on disk: every frame is encoded once, whatever the number of sentences."""
