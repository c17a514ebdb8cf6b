"""One run: a complete configuration in, a record out. Knows nothing of sweeps or of analysis."""
