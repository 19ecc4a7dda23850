"""Regraft under the names of other compilers."""
