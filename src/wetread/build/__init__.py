"""Build: trained networks become packages."""

from wetread.build.pack import pack

__all__ = ["pack"]
