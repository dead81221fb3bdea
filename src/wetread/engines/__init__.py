"""Engines: backends that run a package's network on a device, behind one small protocol."""
