"""Devices: where a model is checked and timed, and the agent that does it there."""
