"""Recipes: each file is one, with a `get_config()` that reads from top to bottom."""
