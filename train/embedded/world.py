"""The tiny world in one import: its instruction rows, its unlabelled documents and the version of both.

Standard library only and pure: the same seed gives the same rows and documents on every machine.
"""

from train.embedded.documents import make_documents
from train.embedded.facts import GENERATOR_VERSION
from train.embedded.tasks import FAMILIES, make_rows

__all__ = ["FAMILIES", "GENERATOR_VERSION", "make_documents", "make_rows"]
