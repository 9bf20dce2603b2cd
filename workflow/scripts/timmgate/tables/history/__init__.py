"""The history: what each run measured, and what changed in it since when."""
