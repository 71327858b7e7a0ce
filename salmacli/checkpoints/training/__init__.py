"""What the predecessor's trainings wrote: only what was trained, to be merged into its base."""
