"""Densities to draw from, and chains that draw from densities."""
