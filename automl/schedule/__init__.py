"""Sweeps that run by themselves: when they are due, what a night is, and the daemon that sees to it."""
