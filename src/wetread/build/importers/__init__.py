"""Importers: trained networks in the formats of their frameworks become graphs, and recipes where these are known."""

from wetread.build.importers.base import Imported, ImportedNetwork, ImportOptions
from wetread.build.importers.find import import_model

__all__ = ["ImportOptions", "Imported", "ImportedNetwork", "import_model"]
