"""Runs that make many pictures: the demo, their folders and their reports."""
