"""Comparisons: of two builds that took turns, and of what was measured apart."""
