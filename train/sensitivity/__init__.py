"""Prompt sensitivity: how much a model's answers depend on wording that does not change what is asked."""
