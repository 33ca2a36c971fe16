"""Measurements of speed and fidelity, each one command and one table."""
