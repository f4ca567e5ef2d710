"""Turns a checkpoint in the diffusers folder layout into a bundle that the runtime opens without torch."""
