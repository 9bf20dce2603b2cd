"""The gate: what is expected of each cell, which differences from it fail, and with which outcome a run ends."""
