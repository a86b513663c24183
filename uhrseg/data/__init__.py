"""Scenes and labels become training pairs."""
