"""Runs: what training leaves on disk, who works on it, and in which order."""
