"""Bytes on disks and hubs ↔ tensors by name; nothing of a stranger's file runs."""
