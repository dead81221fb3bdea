"""Build: trained networks become packages."""
