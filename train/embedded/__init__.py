"""The experiment that needs no download: a tiny procedurally generated world and a model pre-trained on it.

Everything here is deterministic from a seed, so that a sweep run anywhere, offline, compares loss weights on
the same instruction rows with the same base model.
"""
